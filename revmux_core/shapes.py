"""Backbones of well-known sizes with random weights: for speed and memory, which do not depend on what weights say."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BertConfig,
    LlamaConfig,
    PreTrainedConfig,
    T5Config,
)

from revmux_core.backbones import view
from revmux_core.backbones.words import LABEL_WORDS
from revmux_core.backends import BackendName
from revmux_core.backends.select import use_backend
from revmux_core.classifier import MuxClassifier, make_adapters
from revmux_core.errors import RevmuxError
from revmux_core.multiplexing import DEFAULT_METHOD, make_multiplexer
from revmux_core.plan import Tokens
from revmux_core.points import OperatingPoint

_MATRIX, _MATRIX_ON_CPU = 8192, 2048
"""Rows and columns of the matrices that the machine's rate is measured with: large enough to reach it."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A model of `family` with `layers` of hidden size `hidden`, `heads` and an inner size of `inner`.

    A T5 has as many decoder layers again. `key_value_heads` are a Llama's; `vocabulary` is that of a language model.
    """

    layers: int
    hidden: int
    heads: int
    inner: int
    family: Literal["bert", "t5", "llama"] = "bert"
    key_value_heads: int = 0
    vocabulary: int = 30522

    @property
    def num_layers(self) -> int:
        """Layers as its backbone counts them: a T5's decoder step is one more."""
        return self.layers + (self.family == "t5")

    @property
    def weights_per_token(self) -> int:
        """The weights that every token is multiplied with: those of the layers, without embeddings and heads."""
        attention, feed_forward = 4 * self.hidden**2, 2 * self.hidden * self.inner
        if self.family == "t5":
            # Keys and values of the decoder's cross-attention. Its other weights meet one position of a text only.
            attention += 2 * self.hidden**2
        if self.family == "llama":
            attention = 2 * self.hidden**2 * (self.heads + self.key_value_heads) // self.heads
            feed_forward = 3 * self.hidden * self.inner
        return self.layers * (attention + feed_forward)

    @property
    def weights(self) -> int:
        """All weights, within two percent: embeddings and language model head are two tables in a Llama."""
        tables = 2 if self.family == "llama" else 1
        # A T5's decoder layer has the maps of an encoder layer and four more, two of which are counted already.
        decoder = self.layers * (6 * self.hidden**2 + 2 * self.hidden * self.inner) if self.family == "t5" else 0
        return self.weights_per_token + decoder + tables * self.vocabulary * self.hidden

    def flops_per_token(self, length: int) -> float:
        """Floating-point operations of all layers for a token of a text of `length` tokens, plainly: two for every
        multiplication with a weight, and for every one between two tokens' states."""
        return 2 * self.weights_per_token + self.layers * 4 * length * self.hidden

    def config(self) -> PreTrainedConfig:
        sizes: dict[str, Any] = {"vocab_size": self.vocabulary}
        if self.family == "t5":
            sizes |= {"d_model": self.hidden, "d_kv": self.hidden // self.heads, "d_ff": self.inner}
            sizes |= {"num_layers": self.layers, "num_heads": self.heads, "decoder_start_token_id": 0}
            return T5Config(**sizes)
        sizes |= {"hidden_size": self.hidden, "num_hidden_layers": self.layers, "intermediate_size": self.inner}
        sizes |= {"num_attention_heads": self.heads}
        if self.family == "llama":
            return LlamaConfig(**sizes, num_key_value_heads=self.key_value_heads)
        return BertConfig(**sizes)


SHAPES = {
    "minilm-l6": Shape(6, 384, 12, 1536),
    "bert-base": Shape(12, 768, 12, 3072),
    "bert-large": Shape(24, 1024, 16, 4096),
    "t5-small": Shape(6, 512, 8, 2048, "t5", vocabulary=32128),
    "t5-base": Shape(12, 768, 12, 3072, "t5", vocabulary=32128),
    "t5-large": Shape(24, 1024, 16, 4096, "t5", vocabulary=32128),
    "llama3-8b": Shape(32, 4096, 32, 14336, "llama", key_value_heads=8, vocabulary=128256),
}

_MODELS: dict[str, Any] = {
    "bert": AutoModelForSequenceClassification,
    "t5": AutoModelForSeq2SeqLM,
    "llama": AutoModelForCausalLM,
}


def shape_of(name: str) -> Shape:
    """The shape of this name. Raises `RevmuxError` for one that is not known."""
    if name not in SHAPES:
        raise RevmuxError(f"there is no shape {name}: use one of {', '.join(SHAPES)}")
    return SHAPES[name]


def random_classifier(
    shape: Shape,
    widths: Sequence[int],
    prefill: int,
    device: torch.device,
    dtype: torch.dtype,
    backend: BackendName = "torch",
    classes: int = 2,
    sharded: bool = False,
) -> MuxClassifier:
    """An untrained classifier of `classes` labels with points of `widths` that share all layers from `prefill` on.

    Its weights are made where and as they are used; those that are to be `sharded` over all GPUs, on the CPU. Raises
    `RevmuxError` for a width or a prefill that does not fit the shape, and for a shape whose weights do not fit the
    device's memory.
    """
    made = dtype if backend == "torch" else torch.float32
    birthplace = torch.device("cpu") if sharded else device
    needed, held = shape.weights * made.itemsize, memory_bytes(birthplace)
    if needed > held:
        raise RevmuxError(
            f"the weights take {needed / 1e9:.1f} GB in {str(made).removeprefix('torch.')}, the {birthplace.type} has "
            f"{held / 1e9:.1f} GB: choose a smaller --shape, a narrower --dtype or another --device"
        )
    torch.manual_seed(0)
    config = shape.config()
    config.num_labels = classes
    setattr(config, LABEL_WORDS, list(range(1, classes + 1)))
    with birthplace:
        backbone = view(_MODELS[shape.family].from_config(config, dtype=made))
    adapters = {}
    for width in widths:
        point = OperatingPoint.mux(width, prefill, shape.num_layers)
        multiplexer = make_multiplexer(DEFAULT_METHOD, width, shape.hidden)
        adapters[point] = make_adapters(backbone, point, multiplexer, delta_rank=0)
    classifier = MuxClassifier(backbone, adapters)
    use_backend(classifier, backend, device, dtype, sharded)
    return classifier


def random_tokens(count: int, length: int) -> list[Tokens]:
    """`count` texts of `length` random tokens each."""
    ids = np.random.default_rng(0).integers(1000, 20_000, (count, length))
    return [Tokens(row) for row in ids.tolist()]


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of large square matrix products in PyTorch: what this machine can do.

    For int8 it is the rate of bfloat16, as PyTorch multiplies none smaller.
    """
    dtype = torch.bfloat16 if dtype == torch.int8 else dtype
    size = _MATRIX if device.type == "cuda" else _MATRIX_ON_CPU
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(8):
        _synchronize(device)
        begun = time.perf_counter()
        left @ right
        _synchronize(device)
        seconds.append(time.perf_counter() - begun)
    # The first pays for kernels and memory.
    return 2 * size**3 / median(seconds[1:])


def memory_bytes(device: torch.device) -> int:
    """The memory of the GPU that is free, or all that this machine, or the container around it, has."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = Path("/sys/fs/cgroup/memory.max")
    allowed = limit.read_text().strip() if limit.is_file() else "max"
    return installed if allowed == "max" else min(installed, int(allowed))


def peak_bytes(device: torch.device) -> int:
    """The most memory that was held so far: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
