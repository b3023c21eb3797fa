"""Pieces of layers recorded as CUDA graphs, one for every bucket of shapes.

A small batch takes a GPU less time than its kernels take to launch; a graph launches them all at once. It runs on the
addresses and shapes that it was recorded with, so batches are copied into fixed buffers and padded to one of few
shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from revmux_core.backends.pieces import Piece

GRAPH_TOKENS = 1024
"""Padded tokens of the largest bucket. Above it a batch's own work outlasts its launches, and padding costs more than
they do; where exactly is not measured yet."""

MIN_LENGTH = 16
"""Tokens of the shortest bucket: shorter texts cost a GPU as much."""

Program = Callable[[Tensor, Tensor], Tensor]
"""Hidden states `[R, T, d]` and their mask `[R, T]` to hidden states of the same shape."""

Capture = Callable[[Callable[[], None]], Callable[[], None]]
"""Records what a call does on the device, and returns what does it again."""


def round_up(number: int) -> int:
    """The least power of two, or half as much again as one, that is not below `number`; less than 1.5 times it."""
    power = 1 << (number - 1).bit_length()
    return power * 3 // 4 if power >= 4 and number <= power * 3 // 4 else power


def bucket_of(rows: int, length: int) -> tuple[int, int] | None:
    """The rows and length that a batch is padded to; None where it is too large for a graph."""
    bucket = round_up(rows), round_up(max(length, MIN_LENGTH))
    return bucket if bucket[0] * bucket[1] <= GRAPH_TOKENS else None


def buckets(max_length: int) -> list[tuple[int, int]]:
    """All buckets for texts of up to `max_length` tokens, the largest first: its memory serves the rest."""
    shapes = {
        bucket
        for length in range(1, min(max_length, GRAPH_TOKENS) + 1)
        for rows in range(1, GRAPH_TOKENS // length + 1)
        if (bucket := bucket_of(rows, length)) is not None
    }
    return sorted(shapes, key=lambda shape: (-shape[0] * shape[1], shape))


def capture_graph(device: torch.device) -> Capture:
    """Records CUDA graphs on `device` that share memory, as never two of them run at a time."""
    pool = torch.cuda.graph_pool_handle()

    def capture(call: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(device):
            # Libraries set themselves up in their first calls, which cannot be recorded.
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                call()
            torch.cuda.current_stream().wait_stream(stream)
            # In this thread alone: another model may answer meanwhile, and take memory for that.
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                call()

        def replay() -> None:
            with torch.cuda.device(device):
                graph.replay()

        return replay

    return capture


@dataclass(slots=True, eq=False)
class _Bucket:
    """Fixed buffers, and the pieces that were recorded on them: each reads both and leaves its output in `hidden`."""

    hidden: Tensor
    mask: Tensor
    replays: dict[Piece, Callable[[], None]] = field(default_factory=dict)


class Graphs:
    """Recordings of pieces, for hidden states of `hidden_size` channels in `dtype` on `device`."""

    def __init__(self, hidden_size: int, dtype: torch.dtype, device: torch.device, capture: Capture) -> None:
        self._hidden_size = hidden_size
        self._dtype = dtype
        self._device = device
        self._capture = capture
        self._buckets: dict[tuple[int, int], _Bucket] = {}

    def record(self, shape: tuple[int, int], programs: Mapping[Piece, Program]) -> None:
        """Records those of `programs` that were not recorded yet at the bucket `shape`."""
        if shape not in self._buckets:
            hidden = torch.zeros(*shape, self._hidden_size, dtype=self._dtype, device=self._device)
            self._buckets[shape] = _Bucket(hidden, torch.ones(shape, dtype=torch.int64, device=self._device))
        bucket = self._buckets[shape]
        for piece, program in programs.items():
            if piece not in bucket.replays:
                bucket.replays[piece] = self._capture(_in_place(program, bucket.hidden, bucket.mask))

    def run(self, hidden: Tensor, mask: Tensor, pieces: tuple[Piece, ...]) -> Tensor | None:
        """`pieces` in turn over hidden states `[R, T, d]` with their mask `[R, T]`; None where one was not recorded."""
        rows, length = mask.shape
        shape = bucket_of(rows, length)
        bucket = None if shape is None else self._buckets.get(shape)
        if bucket is None or not all(piece in bucket.replays for piece in pieces):
            return None
        # What an earlier batch left must not stay: a NaN there would spread even through a masked position.
        bucket.hidden.zero_()
        bucket.hidden[:rows, :length] = hidden
        bucket.mask.zero_()
        bucket.mask[:rows, :length] = mask
        # A row without any text would have nothing to attend to.
        bucket.mask[rows:, 0] = 1
        for piece in pieces:
            bucket.replays[piece]()
        # Copied, as the next batch overwrites it.
        return bucket.hidden[:rows, :length].clone(memory_format=torch.contiguous_format)


def _in_place(program: Program, hidden: Tensor, mask: Tensor) -> Callable[[], None]:
    def call() -> None:
        hidden.copy_(program(hidden, mask))

    return call
