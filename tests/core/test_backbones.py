"""Every family's view is the untouched model, layer by layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    CamembertConfig,
    DistilBertConfig,
    ElectraConfig,
    GPT2Config,
    RobertaConfig,
    XLMRobertaConfig,
)

from revmux_core.backbones import UnsupportedModelError, view

SIZES: dict[str, Any] = {"vocab_size": 50, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
CONFIGS = {
    "bert": BertConfig(**SIZES, num_hidden_layers=3, num_labels=3),
    "roberta": RobertaConfig(**SIZES, num_hidden_layers=3, num_labels=3, pad_token_id=1),
    "xlm-roberta": XLMRobertaConfig(**SIZES, num_hidden_layers=3, num_labels=3, pad_token_id=1),
    "camembert": CamembertConfig(**SIZES, num_hidden_layers=3, num_labels=3, pad_token_id=1),
    "electra": ElectraConfig(**SIZES, embedding_size=16, num_hidden_layers=3, num_labels=3),
    "distilbert": DistilBertConfig(vocab_size=50, dim=32, n_heads=4, hidden_dim=48, n_layers=3, num_labels=3),
}


def batch(pad_id: int, segments: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 50, (4, 9), generator=generator)
    mask = (torch.arange(9) < torch.tensor([[9], [4], [7], [1]])).long()
    type_ids = torch.randint(0, 2, ids.shape, generator=generator) if segments else None
    return ids.masked_fill(mask == 0, pad_id), mask, type_ids


@pytest.mark.parametrize("family", CONFIGS)
def test_all_layers_reproduce_the_untouched_model_bit_for_bit(family: str) -> None:
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(CONFIGS[family]).eval()
    backbone = view(model)
    ids, mask, type_ids = batch(model.config.pad_token_id or 0, segments=family in ("bert", "electra"))
    inputs = {"input_ids": ids, "attention_mask": mask}
    if type_ids is not None:
        inputs["token_type_ids"] = type_ids
    with torch.inference_mode():
        expected = model(**inputs).logits
        hidden = backbone.embed(ids, mask, type_ids)
        hidden = backbone.run(hidden, mask, backbone.layers(0, 1))
        hidden = backbone.run(hidden, mask, backbone.layers(1, backbone.num_layers))
        logits = backbone.head(backbone.pool(hidden, torch.arange(4), mask))
    assert torch.equal(logits, expected)


@pytest.mark.parametrize("family", CONFIGS)
def test_a_pruned_model_is_the_layers_that_it_kept(family: str) -> None:
    torch.manual_seed(0)
    backbone = view(AutoModelForSequenceClassification.from_config(CONFIGS[family]))
    pruned = view(backbone.pruned([0, 2]))
    assert pruned.num_layers == 2
    ids, mask, type_ids = batch(backbone.model.config.pad_token_id or 0, segments=False)
    rows = torch.arange(4)
    with torch.inference_mode():
        hidden = backbone.embed(ids, mask, type_ids)
        hidden = backbone.run(hidden, mask, [*backbone.layers(0, 1), *backbone.layers(2, 3)])
        expected = backbone.head(backbone.pool(hidden, rows, mask))
        own = pruned.run(pruned.embed(ids, mask, type_ids), mask, pruned.layers(0, 2))
        assert torch.equal(pruned.head(pruned.pool(own, rows, mask)), expected)


def test_other_families_and_tasks_are_refused() -> None:
    sizes = {"vocab_size": 50, "n_embd": 32, "n_layer": 1, "n_head": 2}
    with pytest.raises(UnsupportedModelError, match="is not supported: bring a sequence classifier"):
        view(AutoModelForSequenceClassification.from_config(GPT2Config(**sizes, num_labels=3)))
    with pytest.raises(UnsupportedModelError, match="single-label classification"):
        view(AutoModelForSequenceClassification.from_config(BertConfig(**SIZES, num_hidden_layers=1, num_labels=1)))
