"""Backbones of well-known sizes with random weights: for speed and memory, which do not depend on what weights say."""

from __future__ import annotations

import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch
from transformers import BertConfig, BertForSequenceClassification

from revmux_core.backbones import view
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
    """A BERT: `layers` of hidden size `hidden`, with `heads` and an inner size of `inner`."""

    layers: int
    hidden: int
    heads: int
    inner: int

    def flops_per_token(self, length: int) -> float:
        """Floating-point operations of all layers for a token of a text of `length` tokens, plainly: two for every
        multiplication with a weight, and for every one between two tokens' states."""
        weights = 4 * self.hidden**2 + 2 * self.hidden * self.inner
        return self.layers * (2 * weights + 4 * length * self.hidden)


SHAPES = {
    "minilm-l6": Shape(6, 384, 12, 1536),
    "bert-base": Shape(12, 768, 12, 3072),
    "bert-large": Shape(24, 1024, 16, 4096),
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
) -> MuxClassifier:
    """An untrained classifier of `classes` labels with points of `widths` that share all layers from `prefill` on.

    Raises `RevmuxError` for a width or a prefill that does not fit the shape.
    """
    torch.manual_seed(0)
    config = BertConfig(
        num_hidden_layers=shape.layers,
        hidden_size=shape.hidden,
        num_attention_heads=shape.heads,
        intermediate_size=shape.inner,
    )
    config.num_labels = classes
    backbone = view(BertForSequenceClassification(config))
    adapters = {}
    for width in widths:
        point = OperatingPoint.mux(width, prefill, shape.layers)
        multiplexer = make_multiplexer(DEFAULT_METHOD, width, shape.hidden)
        adapters[point] = make_adapters(backbone, point, multiplexer, delta_rank=0)
    classifier = MuxClassifier(backbone, adapters)
    use_backend(classifier, backend, device, dtype)
    return classifier


def random_tokens(count: int, length: int) -> list[Tokens]:
    """`count` texts of `length` random tokens each."""
    ids = np.random.default_rng(0).integers(1000, 20_000, (count, length))
    return [Tokens(row, [0] * length) for row in ids.tolist()]


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


def peak_bytes(device: torch.device) -> int:
    """The most memory that was held so far: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
