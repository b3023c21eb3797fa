"""Layers and adapters compiled by PyTorch's Inductor (`torch.compile`), layers on a GPU replayed as CUDA graphs.

A program takes weights and sizes as inputs: one serves all pieces of as many frozen layers and all batches of two
rows or more, another one those of a single row. So little is compiled, all of it before the first batch that needs it,
and what a program does not fit runs uncompiled. Measured in `docs/performance.md`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException

from revmux_core.backends import BackendName
from revmux_core.backends.graphs import Capture, Graphs, Program, bucket_of, buckets
from revmux_core.backends.padded import PaddedExecutor
from revmux_core.backends.pieces import (
    Demultiplexing,
    Layers,
    Multiplexing,
    Piece,
    Pieces,
    check_outputs,
    example_states,
)
from revmux_core.batch import Words
from revmux_core.classifier import MuxClassifier
from revmux_core.errors import RevmuxError
from revmux_core.multiplexing import Multiplexer
from revmux_core.points import OperatingPoint
from revmux_core.states import Padded

logger = logging.getLogger(__name__)

LAYERS_TOGETHER = 2
"""Layers of one program, at most. What is compiled is then two programs, however deep the model: 1 and 2 layers."""

TOLERANCE = 0.05
"""Relative error of a program at which it is refused; bfloat16's is about 0.01."""

STANCE = "eager_on_recompile"
"""What PyTorch does with a call that no program fits: it runs uncompiled, as a client cannot wait for a compiler."""

Example = Callable[[Tensor, Tensor], tuple[Tensor, ...]]
"""Hidden states `[R, T, d]` and their mask `[R, T]` to what a module takes."""

_EXCLUSIVE = threading.RLock()
"""PyTorch has one stance for all threads: what compiles a model beside one that answers must not meet the other's."""

_ENTRIES = 256
"""Programs that PyTorch may keep for one function, 8 by default: points, widths and models in turn each need some."""


class InductorExecutor(PaddedExecutor):
    """Runs layers as compiled programs, cut where any point of the classifier multiplexes, stops or skips layers.

    `capture` records what a program does, on devices that can replay it. Until `limit` is called, programs are compiled
    and recorded when they are first needed.
    """

    backend: BackendName = "inductor"

    def __init__(self, classifier: MuxClassifier, capture: Capture | None = None) -> None:
        super().__init__(classifier.backbone)
        self._pieces = Pieces(classifier)
        self._multiplexers = {
            point: classifier.adapters_of(point).multiplexer for point in classifier.points if point != classifier.plain
        }
        self._programs: dict[Piece, Program] = {}
        self._multiplexing: dict[Multiplexer, Callable[..., tuple[Tensor, Tensor, Tensor]]] = {}
        self._demultiplexing: dict[Multiplexer, Callable[..., Tensor]] = {}
        parameter = next(self._backbone.model.parameters())
        self._dtype, self._device = parameter.dtype, parameter.device
        self._capture = capture
        self._graphs = self._no_graphs()
        self._limited = False

    @property
    def precision(self) -> str:
        return str(self._dtype).removeprefix("torch.")

    @torch.inference_mode()
    def limit(self, points: Collection[OperatingPoint]) -> None:
        begun = time.perf_counter()
        logger.info("compiling layers and adapters with Inductor; the first time on a machine takes longest")
        self._pieces.limit(points)
        self._programs.clear()
        pieces = self._pieces.all()
        for piece in pieces:
            self._program(piece)
        for point in points:
            # The plain one has none.
            if point in self._multiplexers:
                self._multiplex(self._multiplexers[point])
                self._demultiplex(self._multiplexers[point])
        logger.info("compiled %d pieces in %.1f s", len(pieces), time.perf_counter() - begun)
        self._graphs = self._no_graphs()
        if self._graphs is not None:
            shapes = buckets(self._backbone.max_tokens)
            for number, shape in enumerate(shapes, start=1):
                self._record(shape, pieces)
                if number % 16 == 0 or number == len(shapes):
                    logger.info("recorded CUDA graphs of %d of %d shapes", number, len(shapes))
        self._limited = True

    def positions(self, lengths: Sequence[int]) -> int:
        shape = len(lengths), max(lengths)
        rows, length = shape if self._graphs is None else bucket_of(*shape) or shape
        return rows * length

    @torch.inference_mode()
    def run_rows(self, hidden: Tensor, mask: Tensor, layers: Sequence[nn.Module]) -> Tensor:
        pieces = tuple(self._pieces.cut(layers))
        programs = [self._program(piece) for piece in pieces]
        if self._graphs is not None:
            if not self._limited and (shape := bucket_of(*mask.shape)) is not None:
                self._record(shape, pieces)
            replayed = self._graphs.run(hidden, mask, pieces)
            if replayed is not None:
                return replayed
        hidden, mask = _plain(hidden), _plain(mask)
        for program in programs:
            hidden = program(hidden, mask)
        return hidden

    @torch.inference_mode()
    def multiplex(self, multiplexer: Multiplexer, states: Padded) -> tuple[Padded, Tensor, Tensor]:
        program = self._multiplex(multiplexer)
        with _EXCLUSIVE, torch.compiler.set_stance(STANCE):
            composite, union, own = program(_plain(states.hidden), _plain(states.mask))
        return Padded(composite, union, states.padding_side), own, states.mask

    @torch.inference_mode()
    def demultiplex(
        self, multiplexer: Multiplexer, states: Padded, own: Tensor, own_mask: Tensor, words: Words | None
    ) -> Tensor:
        if words is not None:
            return super().demultiplex(multiplexer, states, own, own_mask, words)
        program = self._demultiplex(multiplexer)
        with _EXCLUSIVE, torch.compiler.set_stance(STANCE):
            return program(*map(_plain, (states.hidden, own, own_mask)))

    def _no_graphs(self) -> Graphs | None:
        if self._capture is None:
            return None
        return Graphs(self._backbone.hidden_size, self._dtype, self._device, self._capture)

    def _record(self, shape: tuple[int, int], pieces: Sequence[Piece]) -> None:
        assert self._graphs is not None
        self._graphs.record(shape, {piece: self._program(piece) for piece in pieces})

    def _program(self, piece: Piece) -> Program:
        if piece not in self._programs:
            parts = [piece[lo : lo + LAYERS_TOGETHER] for lo in range(0, len(piece), LAYERS_TOGETHER)]
            compiled = [self._compile(Layers(self._backbone, part), 1, _states) for part in parts]

            def run(hidden: Tensor, mask: Tensor) -> Tensor:
                with _EXCLUSIVE, torch.compiler.set_stance(STANCE):
                    for module in compiled:
                        hidden = module(hidden, mask)
                return hidden

            self._programs[piece] = run
        return self._programs[piece]

    def _multiplex(self, multiplexer: Multiplexer) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
        if multiplexer not in self._multiplexing:
            module = Multiplexing(self._backbone, multiplexer)
            self._multiplexing[multiplexer] = self._compile(module, multiplexer.width, _states)
        return self._multiplexing[multiplexer]

    def _demultiplex(self, multiplexer: Multiplexer) -> Callable[..., Tensor]:
        if multiplexer not in self._demultiplexing:
            multiplexing = Multiplexing(self._backbone, multiplexer)

            def example(hidden: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
                composite, _, own = multiplexing(hidden, mask)
                return _plain(composite), _plain(own), mask

            module = Demultiplexing(self._backbone, multiplexer)
            self._demultiplexing[multiplexer] = self._compile(module, multiplexer.width, example)
        return self._demultiplexing[multiplexer]

    def _compile(self, module: nn.Module, width: int, example_of: Example) -> Callable[..., Any]:
        """`module` as a program. It is tried on what `example_of` makes of hidden states `[R, T, d]` and a mask
        `[R, T]`, where R is a multiple of `width`.

        Raises `RevmuxError` where it cannot be compiled, or computes something else then.
        """
        compiled = torch.compile(module.eval(), fullgraph=True, dynamic=True)
        # Sizes that differ, as PyTorch takes equal ones for one and the same. It takes 1 for a constant, so single rows
        # have a program of their own. A single composite has not: what PyTorch kept of its program on disk was found
        # to be taken for that of many.
        for rows in (3, 1) if width == 1 else (3 * width,):
            hidden, mask = example_states(rows, 11, self._backbone.hidden_size)
            hidden, mask = hidden.to(self._device, self._dtype), mask.to(self._device)
            example = example_of(hidden, mask)
            try:
                with _EXCLUSIVE, torch._dynamo.config.patch(recompile_limit=_ENTRIES):
                    found = compiled(*example)
            except TorchDynamoException as error:
                reason = str(error).strip().partition("\n")[0]
                raise RevmuxError(f"the backend inductor cannot compile this model here: {reason}") from error
            expected = module(*example)
            if isinstance(expected, Tensor):
                found, expected = (found,), (expected,)
            check_outputs(self.backend, found, expected, mask, TOLERANCE)
        return compiled


def _states(hidden: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
    return hidden, mask


def _plain(tensor: Tensor) -> Tensor:
    """`tensor` as programs know it: contiguous, and made in inference mode, which is part of a tensor's kind."""
    return tensor.contiguous() if tensor.is_inference() else tensor.clone(memory_format=torch.contiguous_format)
