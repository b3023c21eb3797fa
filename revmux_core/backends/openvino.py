"""Layers compiled by OpenVINO, for CPUs.

Hidden states between programs are bfloat16 where matrix products are, else float32, as are embeddings and heads that
no program holds. Measured in `docs/performance/cpu.md` and `latency.md`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from math import lcm
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from revmux_core.backbones import PackingBackbone
from revmux_core.backends import BackendName
from revmux_core.backends.base import Answered
from revmux_core.backends.packed import FEW_ROWS, Index, Layout, Packed
from revmux_core.backends.pieces import LAST_LAYER, Adapter, Demultiplexing, Multiplexing, Piece, Pieces
from revmux_core.backends.programs import (
    Compiler,
    CompositePath,
    ExitPath,
    Mix,
    PackedEnd,
    PackedLayers,
    PlainPath,
    PrefillPath,
    Program,
    Shortcut,
    from_numpy,
    to_numpy,
)
from revmux_core.batch import Words
from revmux_core.classifier import MuxClassifier
from revmux_core.composites import demultiplex, multiplex
from revmux_core.multiplexing import Multiplexer
from revmux_core.multiplexing.reversible import OwnStatesMultiplexer
from revmux_core.packing import LENGTH_STEP, RowCosts
from revmux_core.points import OperatingPoint
from revmux_core.states import Padded

POSITION_STEP, SAMPLE_STEP = 64, 16
"""Positions that are mixed together, and samples that are demultiplexed, are padded to multiples of these, for the same
reason as rows are packed."""


ATTENTION_WEIGHT = 2
"""Of an encoder layer of hidden size d the linear maps are 24 d^2 operations a position, and attention 4 d for every
position of its row, a share of 1/(6 d) for each. These take longer than those, as much goes to softmax and the mask:
1.4 times in float32 and 3.4 in bfloat16 with AMX, d = 384."""

LARGEST_FIXED = 2**24
"""How many weights the layers may have where few rows have programs of their own: each holds its own."""

AMX_TOGETHER = {torch.bfloat16: 64, torch.int8: 128}
"""Where the CPU has AMX: matrix products of positions that are no multiple of this take as long as those of the
next multiple, or longer: of 1,008 as long as of 1.2 times 1,024 (`docs/performance/latency.md`)."""


Key = tuple[Callable[..., nn.Module], Piece | Multiplexer | OperatingPoint]
"""The kind of a program's module, and what it is of beside the backbone."""


class OpenVinoExecutor:
    """Runs layers as compiled pieces, cut where any point of the classifier multiplexes, stops or skips layers.

    The plain path by itself runs as one piece, so that a text alone waits less: it and the first exit are a program
    each from tokens to logits, what multiplexes is two, unless words are answered. All pieces of the frozen layers are
    compiled when any is first run, for as many threads as PyTorch has. `dtype` is the precision of the matrix products.
    """

    backend: BackendName = "openvino"
    packs = True

    def __init__(self, classifier: MuxClassifier, dtype: torch.dtype) -> None:
        # What does not pack is refused, see `use_backend`.
        self._backbone = cast(PackingBackbone, classifier.backbone)
        self._pieces = Pieces(classifier)
        self._programs: dict[Key, Program] = {}
        self._adapters = {
            point: classifier.adapters_of(point) for point in classifier.points if point != classifier.plain
        }
        self._compiler = Compiler(dtype)
        self._dtype = dtype
        together = AMX_TOGETHER.get(dtype, 1) if torch.cpu.get_capabilities().get("amx_bf16") else 1
        self._costs = RowCosts(ATTENTION_WEIGHT / (6 * classifier.backbone.hidden_size), together)
        self.limit(classifier.points)

    @property
    def precision(self) -> str:
        return str(self._dtype).removeprefix("torch.")

    def limit(self, points: Collection[OperatingPoint]) -> None:
        # Once, as every batch asks for it.
        self._points, self._whole = points, self._whole_of(points)
        # With no more than one beside the plain path texts begin with a program, or go on from where its prefill ends.
        alone = len(points) <= 2 and all(point in self._whole for point in points)
        self._begins = min(point.prefill for point in points) if alone else 0
        self._pieces.limit([OperatingPoint(1, self._begins, ())] if alone else points)
        self._programs.clear()

    def prepare(self, alone: OperatingPoint) -> None:
        wanted = self._frozen()
        for point in self._points:
            if point in self._adapters and not self._begins:
                wanted += self._parts(self._adapters[point].multiplexer)
            if point in self._whole and point.upper:
                wanted += [(self._token_path, point), (self._composite_path, point)]
        self._make(wanted)
        if sum(weights.numel() for layer in self._pieces.frozen for weights in layer.parameters()) <= LARGEST_FIXED:
            kind, of = (self._token_path, alone) if alone in self._whole else self._plain
            # With AMX some of these shapes never come.
            fixed = [(*shape, places) for shape, places in FEW_ROWS.items() if shape in self._costs.shapes(*shape)]
            self._program(kind, of).fix(fixed)

    def positions(self, lengths: Sequence[int]) -> int:
        return Layout.of(tuple(lengths), self._costs).positions

    def answer(
        self,
        points: Sequence[tuple[OperatingPoint, int]],
        ids: Tensor,
        type_ids: Tensor | None,
        lengths: tuple[int, ...],
    ) -> list[Answered[Packed]] | None:
        if not all(point in self._whole for point, _ in points):
            return None
        self._compile()
        answered, first = [], 0
        for point, count in points:
            own = slice(first, first + count)
            answered.append(self._answer(point, ids[own], None if type_ids is None else type_ids[own], lengths[own]))
            first = own.stop
        return answered

    def _answer(
        self, point: OperatingPoint, ids: Tensor, type_ids: Tensor | None, lengths: tuple[int, ...]
    ) -> Answered[Packed]:
        layout, size = Layout.of(lengths, self._costs), self._backbone.hidden_size
        tokens, flat = _tokens(layout, ids, type_ids), None
        program = self._program(self._token_path, point)
        read = program.empty(0, len(layout.firsts))
        if point.prefill < self._backbone.num_layers:
            flat = program.empty(1, len(tokens))
            flat[layout.positions :] = 0
        for block in layout.blocks:
            outputs = [block.grid(read)] if flat is None else [block.grid(read), block.rows(flat)]
            program.run_into(outputs, block.rows(tokens), block.segments, block.firsts)
        read = read[layout.cells]
        if flat is not None and point.width > 1:
            read = self._answer_composites(point, flat, layout, read)
        pooled, logits = torch.from_numpy(read[:, :size]), torch.from_numpy(read[:, size:])
        return Answered(pooled, logits, None if flat is None else Packed.all(from_numpy(flat), layout))

    def _answer_composites(
        self, point: OperatingPoint, flat: np.ndarray, layout: Layout, own: np.ndarray
    ) -> np.ndarray:
        """What the head reads of samples with the shortcuts `own` `[S, k]`, and its logits behind it: `[S, d + C]`."""
        program, width = self._program(self._composite_path, point), point.width
        composites, source = self._composites(layout, layout.lengths, layout.starts, width)
        read = program.empty(0, len(composites.firsts) * width).reshape(len(composites.firsts), -1)
        shortcuts = np.zeros((len(composites.firsts), width * own.shape[1]), own.dtype)
        shortcuts[composites.cells] = own.reshape(len(composites), -1)
        for block in composites.blocks:
            cells = (*block.firsts.shape, width, -1)
            outputs, own = [block.grid(read).reshape(cells)], block.grid(shortcuts).reshape(cells)
            program.run_into(outputs, flat, block.rows(source), block.segments, block.firsts, own)
        return read[composites.cells].reshape(len(layout), -1)

    def embed(self, ids: Tensor, mask: Tensor, type_ids: Tensor | None, lengths: tuple[int, ...]) -> Packed:
        layout = Layout.of(lengths, self._costs)
        flat = self._backbone.embed_tokens(torch.from_numpy(_tokens(layout, ids, type_ids))).to(self._compiler.states)
        flat[layout.positions :] = 0
        return Packed.all(flat, layout)

    def resume(self, texts: Sequence[Tensor], mask: Tensor) -> Packed:
        return Packed.of(texts, self._costs)

    @property
    def last_layer(self) -> float:
        return self._backbone.last_layer if self._backbone.problem.by_word else LAST_LAYER

    def run(self, states: Packed, layers: Sequence[nn.Module], firsts: bool) -> Packed:
        states = states.alone()
        self._compile()
        frozen = self._pieces.frozen
        *before, last = [frozen] if tuple(layers) == frozen else self._pieces.cut(layers)
        for piece in before:
            states = self._run(states, piece)
        return self._run_to_end(states, last) if firsts else self._run(states, last)

    def _run(self, states: Packed, piece: Piece) -> Packed:
        layout, program, before = states.layout, self._program(PackedLayers, piece), to_numpy(states.flat)
        flat = np.empty_like(before)
        flat[layout.positions :] = 0
        for block in layout.blocks:
            program.run_into([block.rows(flat)], block.rows(before), block.segments)
        return replace(states, flat=from_numpy(flat))

    def _run_to_end(self, states: Packed, piece: Piece) -> Packed:
        """The first positions of all, after a piece that ends with the last layer."""
        layout, program = states.layout, self._program(PackedEnd, piece)
        flat, before = program.empty(0, len(layout.firsts)), to_numpy(states.flat)
        for block in layout.blocks:
            program.run_into([block.grid(flat)], block.rows(before), block.segments, block.firsts)
        return replace(states, flat=from_numpy(flat), layout=layout.ends)

    def pool(self, states: Packed, words: Words | None) -> Tensor:
        return (states.firsts().squeeze(1) if words is None else states.read(words)).float()

    def multiplex(self, multiplexer: Multiplexer, states: Packed) -> tuple[Packed, Tensor, Tensor]:
        if not self._in_rows(multiplexer):
            padded = states.padded()
            return self._multiplex_padded(multiplexer, replace(padded, hidden=padded.hidden.float()))
        own = self._shortcut(multiplexer, states)
        mixed = states if multiplexer.width == 1 else self._mix(multiplexer, states)
        return mixed, own, torch.ones(len(own), 1, dtype=torch.long)

    def demultiplex(
        self, multiplexer: Multiplexer, states: Packed, own: Tensor, own_mask: Tensor, words: Words | None
    ) -> Tensor:
        if not self._in_rows(multiplexer):
            hidden = states.padded(multiplexer.appended).hidden.float()
            return demultiplex(self._backbone, multiplexer, hidden, own, own_mask, words)
        firsts, count = states.firsts(), len(own)
        # Rounded up, for the same reason as rows are packed.
        missing = -count % lcm(SAMPLE_STEP, multiplexer.width)
        own, own_mask = F.pad(own, (0, 0, 0, missing)), F.pad(own_mask, (0, 0, 0, missing), value=1)
        firsts = F.pad(firsts, (0, 0, 0, 0, 0, missing // multiplexer.width))
        inputs = to_numpy(firsts), to_numpy(own), own_mask.numpy()
        (pooled,) = self._program(Demultiplexing, multiplexer).run(*inputs)
        return torch.from_numpy(pooled)[:count]

    def _multiplex_padded(self, multiplexer: Multiplexer, states: Padded) -> tuple[Packed, Tensor, Tensor]:
        if multiplexer.width == 1:
            # Next to nothing to compute, which kernels for one more shape are not worth.
            made = multiplex(self._backbone, multiplexer, states.hidden, states.mask)
            composites, union, own = made.hidden, made.mask, made.own
        else:
            outputs = self._program(Multiplexing, multiplexer).run(states.hidden.numpy(), states.mask.numpy())
            composites, union, own = map(torch.from_numpy, outputs)
        texts = [row[held] for row, held in zip(composites.to(self._compiler.states), union.bool(), strict=True)]
        return Packed.of(texts, self._costs), own, states.mask

    def _shortcut(self, multiplexer: Multiplexer, states: Packed) -> Tensor:
        """`Multiplexer.shortcut` of each, `[S, k]`."""
        layout, parts, flat = states.layout, [], to_numpy(states.flat)
        pooled = flat[layout.firsts]
        for block in layout.blocks:
            inputs = block.rows(flat), block.segments, block.grid(pooled)
            (own,) = self._program(Shortcut, multiplexer).run(*inputs)
            rows, texts, size = own.shape
            parts.append(own.reshape(rows * texts, size))
        own = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return from_numpy(own[layout.cells[states.texts]])

    def _mix(self, multiplexer: Multiplexer, states: Packed) -> Packed:
        """`Multiplexer.multiplex`, laid out as its composites will be run."""
        layout, source = self._composites(states.layout, states.lengths, states.starts, multiplexer.width)
        # Rounded up, for the same reason as rows are packed.
        missing = -len(source) % lcm(POSITION_STEP, self._costs.together)
        source = np.pad(source, ((0, missing), (0, 0)), constant_values=states.layout.positions)
        program = self._program(Mix, multiplexer)
        flat = program.empty(0, len(source))
        program.run_into([flat], to_numpy(states.flat), source)
        flat[layout.positions :] = 0
        return Packed.all(from_numpy(flat), layout)

    def _composites(self, layout: Layout, lengths: Index, starts: Index, width: int) -> tuple[Layout, Index]:
        """How composites of samples of `layout` are laid out, whose states there are as long as `lengths` `[S]` from
        `starts` `[S]` on, and where each of their positions is in each sample, or a zero one, see `Packed`: `[F, N]`.
        """
        free, lengths, starts = layout.positions, lengths.reshape(-1, width), starts.reshape(-1, width)
        composites = Layout.of(tuple(lengths.max(axis=1).tolist()), self._costs)
        source = np.full((composites.positions + LENGTH_STEP, width), free)
        within = composites.within[:, None]
        own = np.repeat(starts, composites.lengths, axis=0) + within
        held = within < np.repeat(lengths, composites.lengths, axis=0)
        source[composites.held] = np.where(held, own, free)
        return composites, source

    def _in_rows(self, multiplexer: Multiplexer) -> bool:
        """Whether texts stay in their rows while they become composites."""
        return multiplexer.positionwise and not self._backbone.problem.by_word

    @property
    def _last(self) -> Callable[..., nn.Module]:
        """What a piece that ends with the last frozen layer is compiled as."""
        return PackedLayers if self._backbone.problem.by_word else PackedEnd

    def _whole_of(self, points: Collection[OperatingPoint]) -> list[OperatingPoint]:
        """The points whose way from tokens to logits is a program, or two where texts become composites in between: the
        plain path, of the early exits the first, with which cascades begin, and what multiplexes."""
        if self._backbone.problem.by_word:
            return []
        top = self._backbone.num_layers
        exits, multiplexed = [], []
        for point, adapters in self._adapters.items():
            multiplexer = adapters.multiplexer
            if point not in points or not multiplexer.positionwise or not point.prefill:
                continue
            if point.width > 1 and point.upper and isinstance(multiplexer, OwnStatesMultiplexer):
                multiplexed.append(point)
            elif point.width == 1 and not point.upper:
                exits.append(point)
        return [OperatingPoint.plain(top), *sorted(exits, key=lambda point: point.prefill)[:1], *multiplexed]

    def _token_path(self, backbone: PackingBackbone, point: OperatingPoint) -> nn.Module:
        layers = backbone.layers(0, point.prefill)
        if point.prefill == backbone.num_layers:
            return PlainPath(backbone, layers)
        return (PrefillPath if point.upper else ExitPath)(backbone, layers, self._adapters[point].multiplexer)

    def _composite_path(self, backbone: PackingBackbone, point: OperatingPoint) -> nn.Module:
        adapters = self._adapters[point]
        return CompositePath(backbone, adapters.upper(backbone, point), adapters.multiplexer)

    @property
    def _plain(self) -> Key:
        """The plain path by itself."""
        return (self._token_path, self._whole[0]) if self._whole else (self._last, self._pieces.frozen)

    def _frozen(self) -> list[Key]:
        """All pieces of the frozen layers that are run, where points cut them, and what is not cut."""
        whole: list[Key] = [self._plain, *((self._token_path, point) for point in self._whole[1:] if not point.upper)]
        if self._begins == self._backbone.num_layers:
            return whole
        *before, last = self._pieces.cut(self._pieces.frozen[self._begins :])
        pieces: list[Key] = [*((PackedLayers, piece) for piece in before), (self._last, last)]
        return [*(pieces if self._begins or before else []), *whole]

    def _parts(self, multiplexer: Multiplexer) -> list[Key]:
        """What a point with this multiplexer runs of it."""
        in_rows = self._in_rows(multiplexer)
        kinds: list[type[Adapter]] = [Shortcut, Demultiplexing] if in_rows else []
        if multiplexer.width > 1:
            kinds.append(Mix if in_rows else Multiplexing)
        return [(kind, multiplexer) for kind in kinds]

    def _compile(self) -> None:
        if not self._programs:
            # What this batch does not need is what the first escalated sample will, when nobody wants to wait.
            self._make(self._frozen())

    def _make(self, wanted: Sequence[Key]) -> None:
        """Compiles what of this is not yet compiled."""
        missing = [key for key in dict.fromkeys(wanted) if key not in self._programs]
        modules = [kind(self._backbone, of) for kind, of in missing]
        self._programs.update(zip(missing, self._compiler.compile(modules, self._backbone.hidden_size), strict=True))

    def _program(self, kind: Callable[..., nn.Module], of: Piece | Multiplexer | OperatingPoint) -> Program:
        if (kind, of) not in self._programs:
            self._make([(kind, of)])
        return self._programs[kind, of]


def _tokens(layout: Layout, ids: Tensor, type_ids: Tensor | None) -> np.ndarray:
    """What `embed_tokens` takes of texts `[S, T]` that stand as `layout` says, and a little further on: `[F, 3]`."""
    # In NumPy, whose small operations take a fraction of PyTorch's.
    tokens = np.zeros((len(layout.source), 3), np.int64)
    longest = layout.lengths.max()
    for part, values in enumerate([ids] if type_ids is None else [ids, type_ids]):
        tokens[:, part] = values.numpy()[:, :longest].ravel()[layout.source]
    tokens[:, 2] = layout.nth
    return tokens
