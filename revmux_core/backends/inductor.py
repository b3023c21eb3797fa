"""Layers and adapters compiled by PyTorch's Inductor (`torch.compile`), layers on a GPU replayed as CUDA graphs.

A program takes weights and sizes as inputs: one serves all pieces of as many frozen layers and all batches of two
rows or more, another one those of a single row. So little is compiled, all of it before the first batch that needs it,
and what a program does not fit runs uncompiled. Measured in `docs/performance/cpu.md`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException

from revmux_core.backbones import PackingBackbone
from revmux_core.backends import BackendName
from revmux_core.backends.graphs import Capture, Graphs, Program, bucket_of, buckets
from revmux_core.backends.padded import PaddedExecutor, composites_of
from revmux_core.backends.pieces import (
    LAST_LAYER,
    Demultiplexing,
    Layers,
    Multiplexing,
    Piece,
    Pieces,
    check_outputs,
    example_states,
)
from revmux_core.backends.unpadded import Unpadded, UnpaddedLayers
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

Example = Callable[[Padded], tuple[Any, ...]]
"""Random states to what a module takes of them."""

Unpadding = Callable[[Tensor, Tensor, int], Tensor]
"""`UnpaddedLayers.forward`."""

_EXCLUSIVE = threading.RLock()
"""PyTorch has one stance for all threads: what compiles a model beside one that answers must not meet the other's."""

_ENTRIES = 256
"""Programs that PyTorch may keep for one function, 8 by default: points, widths and models in turn each need some."""


class InductorExecutor(PaddedExecutor):
    """Runs layers as compiled programs, cut where any point of the classifier multiplexes, stops or skips layers.

    `capture` records what a program does, on devices that can replay it. Until `limit` is called, programs are compiled
    and recorded when they are first needed. Batches that no recording is for run without their padding, where PyTorch
    has attention for that (`packs`).
    """

    backend: BackendName = "inductor"

    def __init__(self, classifier: MuxClassifier, capture: Capture | None = None) -> None:
        super().__init__(classifier.backbone)
        self._pieces = Pieces(classifier)
        self._multiplexers = {
            point: classifier.adapters_of(point).multiplexer for point in classifier.points if point != classifier.plain
        }
        self._programs: dict[Piece, Program] = {}
        self._unpadding: dict[tuple[Piece, bool], Unpadding] = {}
        self._multiplexing: dict[Multiplexer, Callable[..., tuple[Tensor, Tensor, Tensor]]] = {}
        self._demultiplexing: dict[Multiplexer, Callable[..., Tensor]] = {}
        parameter = next(self._backbone.model.parameters())
        self._dtype, self._device = parameter.dtype, parameter.device
        self._capture = capture
        self._graphs = self._no_graphs()
        self._limited = False
        # PyTorch 2.15's first choice on a GPU for texts without padding, in programs of its own for more than 128
        # tokens. It makes a plan for every shape that it has not seen: 42 ms (PyTorch's pull request 191576).
        torch.backends.cuda.enable_cudnn_sdp(False)
        self.packs = self._attends_unpadded()

    @property
    def last_layer(self) -> float:
        # Of large batches. What is recorded runs all of it.
        return LAST_LAYER if self.packs and not self._backbone.problem.by_word else self._backbone.last_layer

    @property
    def precision(self) -> str:
        return str(self._dtype).removeprefix("torch.")

    @torch.inference_mode()
    def limit(self, points: Collection[OperatingPoint]) -> None:
        begun = time.perf_counter()
        logger.info("compiling layers and adapters with Inductor; the first time on a machine takes longest")
        self._pieces.limit(points)
        self._programs.clear()
        self._unpadding.clear()
        pieces = self._pieces.all()
        for piece in pieces:
            self._program(piece)
            if self.packs:
                for firsts in (False, True) if self._pieces.ends(piece) else (False,):
                    self._unpadded(piece, firsts)
        for point in points:
            # The plain one has none.
            if point in self._multiplexers:
                self._multiplex(self._multiplexers[point])
                if not self._backbone.problem.by_word:
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
        bucket = self._bucket(*shape)
        if bucket is None and self.packs:
            return sum(lengths)
        rows, length = bucket or shape
        return rows * length

    @torch.inference_mode()
    def run(self, states: Padded, layers: Sequence[nn.Module], firsts: bool) -> Padded:
        if not self.packs or states.lengths is None or self._bucket(*states.mask.shape) is not None:
            return super().run(states, layers, firsts)
        unpadded = Unpadded.of(states)
        flat, offsets, longest = _plain(unpadded.flat), _plain(unpadded.offsets), unpadded.longest
        *before, last = self._pieces.cut(layers)
        for piece in before:
            flat = self._unpadded(piece, False)(flat, offsets, longest)
        flat = self._unpadded(last, firsts)(flat, offsets, longest)
        return unpadded.firsts(flat) if firsts else unpadded.padded(flat)

    @torch.inference_mode()
    def run_rows(self, hidden: Tensor, mask: Tensor, layers: Sequence[nn.Module]) -> Tensor:
        pieces = tuple(self._pieces.cut(layers))
        programs = [self._program(piece) for piece in pieces]
        if self._graphs is not None:
            if not self._limited and (shape := self._bucket(*mask.shape)) is not None:
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
        return composites_of(multiplexer, states, composite, union), own, states.mask

    @torch.inference_mode()
    def demultiplex(
        self, multiplexer: Multiplexer, states: Padded, own: Tensor, own_mask: Tensor, words: Words | None
    ) -> Tensor:
        if words is not None:
            return super().demultiplex(multiplexer, states, own, own_mask, words)
        program = self._demultiplex(multiplexer)
        with _EXCLUSIVE, torch.compiler.set_stance(STANCE):
            return program(*map(_plain, (self._read(multiplexer, states), own, own_mask)))

    @torch.inference_mode()
    def _attends_unpadded(self) -> bool:
        """Whether PyTorch has attention over texts without padding here: on GPUs from Ampere on, in half precision."""
        if not self._backbone.packs:
            return False
        states = self._example(3)
        layers = self._backbone.layers(0, 1)
        module = UnpaddedLayers(cast(PackingBackbone, self._backbone), layers, False)
        try:
            found = module(*_unpadded_states(states))
        except RuntimeError:
            logger.info("texts are padded: PyTorch needs it for attention on %s in %s", self._device, self.precision)
            return False
        expected = self._backbone.run(states.hidden, states.mask, layers)
        padded = Unpadded.of(states).padded(found)
        check_outputs(self.backend, [padded.hidden], [expected], states.mask, TOLERANCE)
        return True

    def _bucket(self, rows: int, length: int) -> tuple[int, int] | None:
        """The shape whose recordings a batch of this shape runs; None where none are made for it."""
        return None if self._graphs is None else bucket_of(rows, length)

    def _no_graphs(self) -> Graphs | None:
        if self._capture is None:
            return None
        return Graphs(self._backbone.hidden_size, self._dtype, self._device, self._capture)

    def _record(self, shape: tuple[int, int], pieces: Sequence[Piece]) -> None:
        assert self._graphs is not None
        self._graphs.record(shape, {piece: self._program(piece) for piece in pieces})

    def _program(self, piece: Piece) -> Program:
        if piece not in self._programs:
            modules = [Layers(self._backbone, part) for part in _parts(piece)]
            self._programs[piece] = _in_turn([self._compile(module, (3, 1), _states) for module in modules])
        return self._programs[piece]

    def _unpadded(self, piece: Piece, firsts: bool) -> Unpadding:
        if (piece, firsts) not in self._unpadding:
            backbone, parts = cast(PackingBackbone, self._backbone), _parts(piece)
            modules = [UnpaddedLayers(backbone, part, firsts and part is parts[-1]) for part in parts]
            compiled = [self._compile(module, (3,), _unpadded_states) for module in modules]
            self._unpadding[piece, firsts] = _in_turn(compiled)
        return self._unpadding[piece, firsts]

    def _multiplex(self, multiplexer: Multiplexer) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
        if multiplexer not in self._multiplexing:
            module = Multiplexing(self._backbone, multiplexer)
            self._multiplexing[multiplexer] = self._compile(module, _rows(multiplexer), _states)
        return self._multiplexing[multiplexer]

    def _demultiplex(self, multiplexer: Multiplexer) -> Callable[..., Tensor]:
        if multiplexer not in self._demultiplexing:
            multiplexing = Multiplexing(self._backbone, multiplexer)

            def example(states: Padded) -> tuple[Any, ...]:
                composite, union, own = multiplexing(states.hidden, states.mask)
                made = composites_of(multiplexer, states, composite, union)
                return _plain(self._read(multiplexer, made)), _plain(own), states.mask

            module = Demultiplexing(self._backbone, multiplexer)
            self._demultiplexing[multiplexer] = self._compile(module, _rows(multiplexer), example)
        return self._demultiplexing[multiplexer]

    def _read(self, multiplexer: Multiplexer, composites: Padded) -> Tensor:
        """All of composites `[B, T, d]` that demultiplexing reads, which is all that there is where layers end so."""
        hidden = composites.hidden
        return hidden[:, :1] if self._backbone.packs and multiplexer.positionwise else hidden

    def _example(self, rows: int) -> Padded:
        """Random states of `rows` texts of unlike lengths. Sizes differ, as PyTorch takes equal ones for the same."""
        hidden, mask = example_states(rows, 11, self._backbone.hidden_size)
        lengths = tuple(mask.sum(dim=1).tolist())
        hidden, mask = hidden.to(self._device, self._dtype), mask.to(self._device)
        return Padded(hidden, mask, self._backbone.padding_side, lengths)

    def _compile(self, module: nn.Module, numbers: Sequence[int], example_of: Example) -> Callable[..., Any]:
        """`module` as a program. It is tried on what `example_of` makes of random states of each of these `numbers` of
        texts, where a program that PyTorch keeps for one is used again for the next if it fits.

        Raises `RevmuxError` where it cannot be compiled, or computes something else then.
        """
        compiled = torch.compile(module.eval(), fullgraph=True, dynamic=True)
        for number in numbers:
            states = self._example(number)
            example = example_of(states)
            try:
                with _EXCLUSIVE, torch._dynamo.config.patch(recompile_limit=_ENTRIES):
                    found = compiled(*example)
            except TorchDynamoException as error:
                reason = str(error).strip().partition("\n")[0]
                raise RevmuxError(f"the backend inductor cannot compile this model here: {reason}") from error
            expected = module(*example)
            if isinstance(expected, Tensor):
                found, expected = (found,), (expected,)
            check_outputs(self.backend, found, expected, states.mask, TOLERANCE)
        return compiled


def _parts(piece: Piece) -> list[Piece]:
    """A piece as its programs take it."""
    return [piece[lo : lo + LAYERS_TOGETHER] for lo in range(0, len(piece), LAYERS_TOGETHER)]


def _in_turn(compiled: Sequence[Callable[..., Tensor]]) -> Callable[..., Tensor]:
    """Programs of layers one after the other: each takes the states that the one before left, and what all take."""

    def run(states: Tensor, *rest: Any) -> Tensor:
        with _EXCLUSIVE, torch.compiler.set_stance(STANCE):
            for program in compiled:
                states = program(states, *rest)
        return states

    return run


def _rows(multiplexer: Multiplexer) -> Sequence[int]:
    """Of how many texts a multiplexer's programs are compiled.

    PyTorch takes 1 for a constant, so single rows have a program of their own. A single composite has not: what PyTorch
    kept of its program on disk was found to be taken for that of many.
    """
    return (3, 1) if multiplexer.width == 1 else (3 * multiplexer.width,)


def _states(states: Padded) -> tuple[Any, ...]:
    return states.hidden, states.mask


def _unpadded_states(states: Padded) -> tuple[Any, ...]:
    unpadded = Unpadded.of(states)
    return unpadded.flat, unpadded.offsets, unpadded.longest


def _plain(tensor: Tensor) -> Tensor:
    """`tensor` as programs know it: contiguous, and made in inference mode, which is part of a tensor's kind."""
    return tensor.contiguous() if tensor.is_inference() else tensor.clone(memory_format=torch.contiguous_format)
