"""Tiny models that tests build for themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForSequenceClassification,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from revmux_core.backbones.base import set_problem
from revmux_core.backends.graphs import Capture
from revmux_core.base_model import sha256
from revmux_core.bundle import Bundle
from revmux_core.classifier import Adapters, MuxClassifier
from revmux_core.manifest import BaseEntry, record_measurements
from revmux_core.multiplexing import DEFAULT_METHOD, EARLY_EXIT, make_multiplexer
from revmux_core.multiplexing.reversible import ReversibleMultiplexer
from revmux_core.offline import run_all
from revmux_core.plan import Tokens
from revmux_core.points import OperatingPoint
from revmux_core.problems import Problem, ProblemType, make_problem
from revmux_core.saving import save_bundle

LABELS = ["negative", "neutral", "positive"]
WORDS = [f"word{i}" for i in range(180)] + ["a", "an", "the", "good", "bad", "film", "is", "not", "very", "."]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
LAYERS, HIDDEN, MAX_TOKENS = 4, 32, 64
PROBLEMS: dict[ProblemType, Problem] = {
    "single_label_classification": make_problem("single_label_classification", LABELS),
    "multi_label_classification": make_problem("multi_label_classification", LABELS, [0.5, 0.3, 0.6]),
    "regression": make_problem("regression", ["score"], tolerance=0.5),
    "token_classification": make_problem("token_classification", ["O", *LABELS]),
}
"""What tiny models answer, one of every type."""
EARLY = OperatingPoint(1, 2, ())


def save_tokenizer(folder: Path, template: str | None = "[CLS] $A [SEP]", words: Sequence[str] = tuple(WORDS)) -> None:
    """A WordPiece tokenizer of about 200 words, saved as a model folder has it; `template` is what it makes of a text,
    and of a pair where it is not BERT's. Ids follow the order of `words`."""
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *words])}
    rust = RustTokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    rust.normalizer = normalizers.BertNormalizer()
    rust.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if template == "[CLS] $A [SEP]":
        rust.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    elif template is not None:
        pair = template.replace("$A", "$A $B")
        rust.post_processor = processors.TemplateProcessing(
            single=template, pair=pair, special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    segments = ["token_type_ids"] if template == "[CLS] $A [SEP]" else []
    PreTrainedTokenizerFast(
        tokenizer_object=rust,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=MAX_TOKENS,
        model_input_names=["input_ids", *segments, "attention_mask"],
    ).save_pretrained(folder)


def save_tiny_bundle(
    folder: Path,
    base: Path,
    adapters: Mapping[OperatingPoint, Adapters],
    problem: Problem = PROBLEMS["single_label_classification"],
    name: str = "tiny",
    **task: Any,
) -> None:
    """A bundle around the tiny model in the folder `base`; `task` has what a language model needs beside it."""
    save_bundle(
        folder,
        name=name,
        base=BaseEntry(model_id=str(base), sha256=sha256(base / "model.safetensors")),
        problem=problem,
        max_tokens=MAX_TOKENS,
        source=base,
        task=None,
        adapters=adapters,
        num_layers=LAYERS,
        training={},
        **task,
    )


def tiny_config(**settings: Any) -> BertConfig:
    """A BERT of 4 layers and d = 32 that knows the words of `save_tokenizer`."""
    return BertConfig(
        vocab_size=len(SPECIAL + WORDS),
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=MAX_TOKENS,
        **settings,
    )


def save_task_bundle(folder: Path, kind: ProblemType) -> None:
    """A bundle around a random BERT in `folder/base` whose task is of another type: untrained adapters of widths 2 and
    4, and of the exit `EARLY`."""
    problem, base = PROBLEMS[kind], folder / "base"
    torch.manual_seed(0)
    # Wide enough for clearly different answers; narrow enough that neighbouring words do not blur into one.
    config = tiny_config(initializer_range=0.1 if problem.by_word else 0.4)
    set_problem(config, problem)
    kinds = {True: BertForTokenClassification, False: BertForSequenceClassification}
    kinds[problem.by_word](config).save_pretrained(base)
    save_tokenizer(base)
    points = [OperatingPoint.mux(width, 2, LAYERS) for width in (2, 4)]
    multiplexers = {point: make_multiplexer(DEFAULT_METHOD, point.width, HIDDEN) for point in points}
    multiplexers[EARLY] = make_multiplexer(EARLY_EXIT, 1, HIDDEN)
    save_tiny_bundle(folder, base, {point: Adapters(own) for point, own in multiplexers.items()}, problem)


FAMILIES = {
    "t5": (T5ForConditionalGeneration, T5Config, "$A [SEP]"),
    "llama": (LlamaForCausalLM, LlamaConfig, "[CLS] $A"),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, None),
    "mistral": (MistralForSequenceClassification, MistralConfig, "[CLS] $A"),
}
"""Of every family beside the encoders a model class, its configuration, and what its tokenizer makes of a text."""
PROMPT_TOKENS = 5


def save_family(folder: Path, family: str) -> None:
    """A random model of `FAMILIES` with 4 layers (T5: 3 and the decoder step), d = 32, and its tokenizer."""
    kind, config, template = FAMILIES[family]
    sizes: dict[str, Any] = {"vocab_size": len(SPECIAL + WORDS), "num_attention_heads": 4, "pad_token_id": 0}
    if family == "t5":
        sizes |= {"d_model": HIDDEN, "d_kv": 8, "d_ff": 64, "num_heads": 4, "num_layers": LAYERS - 1}
        sizes |= {"decoder_start_token_id": 0, "n_positions": MAX_TOKENS}
    else:
        sizes |= {"hidden_size": HIDDEN, "intermediate_size": 64, "num_hidden_layers": LAYERS, "head_dim": 8}
        sizes |= {"num_key_value_heads": 2, "max_position_embeddings": MAX_TOKENS, "initializer_range": 0.3}
    if kind is MistralForSequenceClassification:
        sizes |= {"id2label": dict(enumerate(LABELS)), "label2id": {name: i for i, name in enumerate(LABELS)}}
    torch.manual_seed(0)
    kind(config(**sizes)).save_pretrained(folder)
    save_tokenizer(folder, template)


def save_family_bundle(folder: Path, family: str) -> None:
    """A bundle around `save_family` in `folder/base`: untrained adapters of widths 2 and 4, and where it is a language
    model, the label words bad, film and good and a random soft prompt."""
    base = folder / "base"
    save_family(base, family)
    words = family != "mistral"
    vocabulary = {word: i for i, word in enumerate(SPECIAL + WORDS)}
    adapters = {
        OperatingPoint.mux(width, 2, LAYERS): Adapters(ReversibleMultiplexer(width, HIDDEN)) for width in (2, 4)
    }
    save_tiny_bundle(
        folder,
        base,
        adapters,
        verbalizer=dict(zip(LABELS, (vocabulary[word] for word in ("bad", "film", "good")), strict=True))
        if words
        else None,
        prompt=torch.randn(PROMPT_TOKENS, HIDDEN) if words else None,
    )
    record_measurements(folder, {"points": [{"point": point.name, "agreement": 0.97} for point in adapters]})


def random_samples(bundle: Bundle, count: int, seed: int = 0) -> tuple[list[str], list[Tokens]]:
    """Texts of 2 to 19 of the tokenizer's words, and their tokens."""
    rng = np.random.default_rng(seed)
    lines = [" ".join(rng.choice(WORDS, rng.integers(2, 20))) for _ in range(count)]
    return lines, bundle.tokenizer([(line, None) for line in lines])


def assert_same_answers(bundle: Bundle, reference: MuxClassifier, points: Iterable[OperatingPoint]) -> None:
    """Whatever runs its layers, `bundle` computes at `points` what `reference` does: tokens to logits, 60 texts."""
    samples = random_samples(bundle, 60)[1]
    for point in points:
        found, _ = run_all(bundle.classifier, samples, point, bundle.tokenizer.pad_id, 200)
        expected, _ = run_all(reference, samples, point, bundle.tokenizer.pad_id, 200)
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


def counting_capture() -> tuple[Capture, list[int]]:
    """What records as on a GPU, where a recording is the call itself, and, in a list of one, how many were replayed."""
    replayed = [0]

    def capture(call: Callable[[], None]) -> Callable[[], None]:
        def replay() -> None:
            replayed[0] += 1
            call()

        return replay

    return capture, replayed
