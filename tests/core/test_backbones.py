"""Every family's view is the untouched model, layer by layer."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    CamembertConfig,
    DistilBertConfig,
    ElectraConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    MT5Config,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    RobertaConfig,
    T5Config,
    T5EncoderModel,
    XLMRobertaConfig,
)

from revmux_core.backbones import Backbone, PackingBackbone, UnsupportedModelError, encoder, view
from revmux_core.backbones.words import LABEL_WORDS, prompt_ids, set_prompt
from revmux_core.composites import demultiplex, multiplex
from revmux_core.multiplexing import make_multiplexer

# Weights so wide that different texts get clearly different answers.
WIDE = {"vocab_size": 50, "initializer_range": 0.3}
SIZES: dict[str, Any] = WIDE | {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
DECODER: dict[str, Any] = SIZES | {"num_hidden_layers": 3, "num_key_value_heads": 2, "pad_token_id": 0}
T5: dict[str, Any] = {"vocab_size": 50, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 4, "num_layers": 3}
T5 |= {"decoder_start_token_id": 0, "num_decoder_layers": 2}
QWEN_WINDOWS = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
CONFIGS = {
    "bert": BertConfig(**SIZES, num_hidden_layers=3, num_labels=3),
    "roberta": RobertaConfig(**SIZES, num_hidden_layers=3, num_labels=3, pad_token_id=1),
    "xlm-roberta": XLMRobertaConfig(**SIZES, num_hidden_layers=3, num_labels=3, pad_token_id=1),
    "camembert": CamembertConfig(**SIZES, num_hidden_layers=3, num_labels=3, pad_token_id=1),
    "electra": ElectraConfig(**SIZES, embedding_size=16, num_hidden_layers=3, num_labels=3),
    "distilbert": DistilBertConfig(**WIDE, dim=32, n_heads=4, hidden_dim=48, n_layers=3, num_labels=3),
    "llama": LlamaConfig(**DECODER, num_labels=3),
    "mistral": MistralConfig(**DECODER, num_labels=3, sliding_window=4),
    "qwen2": Qwen2Config(**DECODER, num_labels=3, **QWEN_WINDOWS),
    "qwen3": Qwen3Config(**DECODER, num_labels=3, head_dim=8),
    "llama-words": LlamaConfig(**DECODER),
    "mistral-words": MistralConfig(**DECODER, sliding_window=None),
    "qwen2-words": Qwen2Config(**DECODER),
    "qwen3-words": Qwen3Config(**DECODER, head_dim=8, **QWEN_WINDOWS),
    "t5-words": T5Config(**T5),
    "flan-t5-words": T5Config(**T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    "mt5-words": MT5Config(**T5, feed_forward_proj="gated-gelu"),
}
WORDS = [7, 30, 11]


def make(family: str) -> PreTrainedModel:
    """A random model; a language model has three label words."""
    torch.manual_seed(0)
    config = CONFIGS[family]
    if not family.endswith("-words"):
        return AutoModelForSequenceClassification.from_config(config).eval()
    kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model = kind.from_config(config).eval()
    setattr(model.config, LABEL_WORDS, WORDS)
    return model


def batch(backbone: Backbone, segments: bool = False) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 50, (4, 9), generator=generator)
    mask = (torch.arange(9) < torch.tensor([[9], [4], [7], [1]])).long()
    if backbone.padding_side == "left":
        mask = mask.flip(1)
    type_ids = torch.randint(0, 2, ids.shape, generator=generator) if segments else None
    return ids.masked_fill(mask == 0, backbone.model.config.pad_token_id or 0), mask, type_ids


def untouched(family: str, model: PreTrainedModel, **inputs: Any) -> torch.Tensor:
    """The logits of the model's own forward pass, at the label words where it is a language model."""
    if not family.endswith("-words"):
        return model(**inputs).logits
    if model.config.is_encoder_decoder:
        start = torch.full((len(inputs["input_ids"]), 1), model.config.decoder_start_token_id)
        return model(**inputs, decoder_input_ids=start).logits[:, 0, WORDS]
    return model(**inputs).logits[:, -1, WORDS]


def run(backbone: Backbone, ids: torch.Tensor, mask: torch.Tensor, *edges: int) -> torch.Tensor:
    """Logits of the layers run range by range, from one of `edges` to the next."""
    hidden = backbone.embed(ids, mask, None)
    for lo, hi in pairwise((0, *edges, backbone.num_layers)):
        hidden = backbone.run(hidden, mask, backbone.layers(lo, hi))
    return backbone.head(backbone.pool(hidden, torch.arange(len(ids)), mask))


@pytest.mark.parametrize("family", CONFIGS)
def test_all_layers_reproduce_the_untouched_model(family: str) -> None:
    """Bit for bit in an encoder. A decoder's head multiplies one position's states with the label words' rows alone,
    and a matrix product of another shape may round its sums in another order."""
    model = make(family)
    backbone = view(model)
    ids, mask, type_ids = batch(backbone, segments=family in ("bert", "electra"))
    inputs = {"input_ids": ids, "attention_mask": mask}
    if type_ids is not None:
        inputs["token_type_ids"] = type_ids
    if backbone.padding_side == "left":
        # As Hugging Face's generation counts them.
        inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.inference_mode():
        expected = untouched(family, model, **inputs)
        hidden = backbone.embed(ids, mask, type_ids)
        hidden = backbone.run(hidden, mask, backbone.layers(0, 1))
        hidden = backbone.run(hidden, mask, backbone.layers(1, backbone.num_layers))
        logits = backbone.head(backbone.pool(hidden, torch.arange(4), mask))
    if family.endswith("-words") or backbone.padding_side == "left":
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    else:
        assert torch.equal(logits, expected)
    assert logits.std(dim=0).min() > 1e-3, "texts are told apart"


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta", "camembert", "electra", "distilbert"])
def test_a_token_head_reads_every_position_as_the_untouched_model_does(family: str) -> None:
    torch.manual_seed(0)
    model = AutoModelForTokenClassification.from_config(CONFIGS[family]).eval()
    backbone = view(model)
    ids, mask, _ = batch(backbone)
    with torch.inference_mode():
        expected = model(input_ids=ids, attention_mask=mask).logits
        assert torch.equal(run(backbone, ids, mask, 1), expected)
    assert backbone.problem.by_word
    assert backbone.head_modules == ["classifier"]


@pytest.mark.parametrize("family", encoder.FAMILIES)
def test_texts_that_share_a_row_are_embedded_as_by_themselves(family: str) -> None:
    """Bit for bit, before and after the model's tables became parts of one."""
    backbone = cast(PackingBackbone, view(make(family)))
    ids, mask, type_ids = batch(backbone, segments=family in ("bert", "electra"))
    texts = ids[mask == 1]
    positions = torch.arange(9).expand_as(ids)[mask == 1]
    with torch.inference_mode():
        expected = backbone.embed(ids, mask, type_ids)[mask == 1]
        types = torch.zeros_like(texts) if type_ids is None else type_ids[mask == 1]
        tokens = torch.stack([texts, types, positions], dim=-1)
        for _ in range(2):
            assert torch.equal(backbone.embed_tokens(tokens), expected)
        assert torch.equal(backbone.embed(ids, mask, type_ids)[mask == 1], expected)
    tables = backbone.model.get_input_embeddings().weight
    assert not tables.is_inference()
    assert tables.untyped_storage().nbytes() > tables.nbytes, "none is held twice"


@pytest.mark.parametrize("family", encoder.FAMILIES)
def test_a_layer_makes_of_some_positions_what_it_makes_of_all(family: str) -> None:
    backbone = cast(PackingBackbone, view(make(family)))
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 9, 32, generator=generator)
    # Which of two texts of its row a position is of.
    segments = torch.tensor([[1] * 4 + [2] * 5, [1] * 6 + [2] * 3])
    at = torch.tensor([[0, 4, 8], [6, 5, 0]])
    (layer,) = backbone.layers(1, 2)
    with torch.inference_mode():
        every = backbone.run(hidden, segments.unsqueeze(2) == segments.unsqueeze(1), [layer])
        mask = segments.gather(1, at).unsqueeze(2) == segments.unsqueeze(1)
        some = backbone.run_at(hidden, at, mask, layer)
    torch.testing.assert_close(some, every.gather(1, at.unsqueeze(2).expand(-1, -1, 32)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", CONFIGS)
def test_texts_as_long_as_the_model_takes_are_answered_beside_short_ones(family: str) -> None:
    """The longest that an encoder's table of positions holds, or 512 tokens, and a text of 5: each as the untouched
    model does alone."""
    model = make(family)
    backbone = view(model)
    length = min(backbone.max_tokens, 512)
    ids = torch.randint(5, 50, (2, length), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    padded = slice(0, length - 5) if backbone.padding_side == "left" else slice(5, length)
    mask[1, padded] = 0
    ids = ids.masked_fill(mask == 0, backbone.model.config.pad_token_id or 0)
    with torch.inference_mode():
        logits = run(backbone, ids, mask, 1)
        alone = [
            untouched(family, model, input_ids=row[own.bool()][None])[0] for row, own in zip(ids, mask, strict=True)
        ]
    torch.testing.assert_close(logits, torch.stack(alone), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "mistral-words", "qwen2", "qwen3-words"])
def test_hidden_states_of_decoders_are_those_of_the_untouched_model_bit_for_bit(family: str) -> None:
    model = make(family)
    backbone = view(model)
    ids, mask, _ = batch(backbone)
    inner: Any = model.get_decoder()
    with torch.inference_mode():
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        expected = inner(ids, attention_mask=mask, position_ids=positions).last_hidden_state
        hidden = backbone.run(backbone.embed(ids, mask, None), mask, backbone.layers(0, backbone.num_layers))
        assert torch.equal(inner.norm(hidden), expected)


@pytest.mark.parametrize("family", ["t5-words", "mt5-words"])
def test_the_decoder_step_is_that_of_the_untouched_model_bit_for_bit(family: str) -> None:
    model = make(family)
    backbone = view(model)
    ids, mask, _ = batch(backbone)
    whole: Any = model
    with torch.inference_mode():
        encoded = whole.encoder(ids, attention_mask=mask).last_hidden_state
        start = torch.zeros(4, 1, dtype=torch.long)
        expected = whole.decoder(start, encoder_hidden_states=encoded, encoder_attention_mask=mask).last_hidden_state
        hidden = backbone.run(backbone.embed(ids, mask, None), mask, backbone.layers(0, backbone.num_layers))
        assert hidden.shape == (*ids.shape, backbone.hidden_size)
        assert torch.equal(backbone.pool(hidden, torch.arange(4), mask), expected[:, 0])


@pytest.mark.parametrize("family", CONFIGS)
def test_layer_ranges_compose(family: str) -> None:
    backbone = view(make(family))
    ids, mask, _ = batch(backbone)
    with torch.inference_mode():
        assert torch.equal(run(backbone, ids, mask), run(backbone, ids, mask, 1, 2))


def stretch(backbone: Backbone, ids: torch.Tensor, mask: torch.Tensor, more: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The same texts with `more` padded positions, all of which hold a word."""
    sides = (more, 0) if backbone.padding_side == "left" else (0, more)
    wider = F.pad(mask, sides)
    return F.pad(ids, sides, value=9).masked_fill(wider == 0, 9), wider


@pytest.mark.parametrize("family", CONFIGS)
def test_what_is_padded_changes_no_answer(family: str) -> None:
    backbone = view(make(family))
    ids, mask, _ = batch(backbone)
    with torch.inference_mode():
        expected = run(backbone, ids, mask)
        torch.testing.assert_close(run(backbone, *stretch(backbone, ids, mask, 5)), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", CONFIGS)
def test_a_composite_holds_its_samples_and_nothing_that_is_padded(family: str) -> None:
    """Its answers change with neither the padding's length nor what stands in it, but with a partner's words."""
    backbone = view(make(family))
    ids, mask, _ = batch(backbone)
    multiplexer = make_multiplexer("vanilla-adapter", 2, backbone.hidden_size).eval()
    for parameter in multiplexer.parameters():
        torch.nn.init.normal_(parameter, std=0.2)

    def answers(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        hidden = backbone.run(backbone.embed(ids, mask, None), mask, backbone.layers(0, 1))
        composites = multiplex(backbone, multiplexer, hidden, mask)
        layers = backbone.layers(1, backbone.num_layers)
        hidden = backbone.run(composites.hidden, composites.mask, layers)
        return demultiplex(backbone, multiplexer, hidden, composites.own, composites.own_mask)

    with torch.inference_mode():
        expected = answers(ids, mask)
        assert expected.shape == (4, backbone.hidden_size)
        for more in (5, 500):
            torch.testing.assert_close(answers(*stretch(backbone, ids, mask, more)), expected, atol=1e-4, rtol=1e-4)
        changed = ids.clone()
        changed[0, 4] += 1
        changed = answers(changed, mask)
    assert not torch.allclose(changed[1], expected[1], atol=1e-3)
    torch.testing.assert_close(changed[2:], expected[2:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["t5-words", "llama-words"])
def test_a_soft_prompt_stands_in_front_of_the_text(family: str) -> None:
    """Where the untouched model is given the same embeddings, it gives the same logits."""
    model = make(family)
    prompt = torch.randn(3, 32)
    set_prompt(model, prompt)
    backbone = view(model)
    ids = torch.randint(5, 50, (2, 6))
    prompted = torch.cat([torch.tensor([prompt_ids(model, 3)]).expand(2, -1), ids], dim=1)
    mask = torch.ones_like(prompted)
    table: Any = model.get_input_embeddings()
    with torch.inference_mode():
        embedded = torch.cat([prompt.expand(2, -1, -1), table(ids)], dim=1)
        if model.config.is_encoder_decoder:
            start = torch.zeros(2, 1, dtype=torch.long)
            expected = model(inputs_embeds=embedded, attention_mask=mask, decoder_input_ids=start).logits[:, 0, WORDS]
        else:
            expected = model(inputs_embeds=embedded, attention_mask=mask).logits[:, -1, WORDS]
        torch.testing.assert_close(run(backbone, prompted, mask), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", CONFIGS)
def test_a_pruned_model_is_the_layers_that_it_kept(family: str) -> None:
    backbone = view(make(family))
    kept = [0, 2, 3] if backbone.num_layers == 4 else [0, 2]
    pruned = view(backbone.pruned(kept))
    assert pruned.num_layers == len(kept)
    ids, mask, _ = batch(backbone)
    rows = torch.arange(4)
    with torch.inference_mode():
        hidden = backbone.embed(ids, mask, None)
        hidden = backbone.run(hidden, mask, [layer for i in kept for layer in backbone.layers(i, i + 1)])
        expected = backbone.head(backbone.pool(hidden, rows, mask))
        assert torch.equal(run(pruned, ids, mask), expected)


def test_other_families_and_tasks_are_refused() -> None:
    sizes = {"vocab_size": 50, "n_embd": 32, "n_layer": 1, "n_head": 2}
    with pytest.raises(UnsupportedModelError, match="is not supported: bring a sequence or token classifier"):
        view(AutoModelForSequenceClassification.from_config(GPT2Config(**sizes, num_labels=3)))
    for config in (BertConfig(**SIZES, num_labels=2), LlamaConfig(**DECODER, num_labels=2)):
        config.problem_type = "regression"
        with pytest.raises(UnsupportedModelError, match="regression is of one score, not of 2"):
            view(AutoModelForSequenceClassification.from_config(config))
    with pytest.raises(UnsupportedModelError, match="needs at least two labels"):
        view(AutoModelForTokenClassification.from_config(BertConfig(**SIZES, num_labels=1)))
    with pytest.raises(UnsupportedModelError, match=r"of this family \.\.\.ForSequenceClassification"):
        view(AutoModelForTokenClassification.from_config(LlamaConfig(**DECODER, num_labels=3)))
    with pytest.raises(UnsupportedModelError, match="only models with a language model head"):
        view(T5EncoderModel(T5Config(**T5)))
    with pytest.raises(UnsupportedModelError, match="at least two"):
        view(AutoModelForCausalLM.from_config(LlamaConfig(**DECODER)))
    with pytest.raises(UnsupportedModelError, match="needs its first encoder layer"):
        view(make("t5-words")).pruned([1, 3])
