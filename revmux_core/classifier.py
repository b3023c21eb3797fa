"""One frozen backbone, several operating points: runs a planned batch from tokens to logits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

from revmux_core.backbones import Backbone
from revmux_core.backends.base import Answered, Executor
from revmux_core.backends.eager import EagerExecutor
from revmux_core.batch import MuxBatch, Prefilled, Words
from revmux_core.confidence import LearntConfidence
from revmux_core.deltas import DeltaLayers
from revmux_core.multiplexing import Multiplexer
from revmux_core.plan import Group
from revmux_core.points import OperatingPoint
from revmux_core.states import States


class Adapters(nn.Module):
    """All that belongs to one operating point, other than the plain one, beside the frozen backbone.

    `deltas` holds the point's own versions of its upper layers; None runs the frozen ones. `confidence` says how sure
    the point is of an answer; None takes the model's own probability of it.
    """

    def __init__(self, multiplexer: Multiplexer, deltas: DeltaLayers | None = None) -> None:
        super().__init__()
        self.multiplexer = multiplexer
        self.deltas = deltas
        self.confidence: LearntConfidence | None = None

    def layers(self, backbone: Backbone, point: OperatingPoint, lo: int, hi: int) -> Sequence[nn.Module]:
        """What runs on composites as layers `lo` to `hi - 1`, all of them upper layers of `point`."""
        if self.deltas is None:
            return backbone.layers(lo, hi)
        return [layer for number, layer in zip(point.upper, self.deltas.layers, strict=True) if lo <= number < hi]

    def upper(self, backbone: Backbone, point: OperatingPoint) -> Sequence[nn.Module]:
        """All that runs on composites of `point`, neighbours or not."""
        return frozen_upper(backbone, point) if self.deltas is None else list(self.deltas.layers)


def frozen_upper(backbone: Backbone, point: OperatingPoint) -> list[nn.Module]:
    """The upper layers of `point` as the backbone has them."""
    return [layer for number in point.upper for layer in backbone.layers(number, number + 1)]


def make_adapters(backbone: Backbone, point: OperatingPoint, multiplexer: Multiplexer, delta_rank: int) -> Adapters:
    """Untrained adapters of `point`, on the backbone's device; `delta_rank` 0 leaves its upper layers frozen."""
    layers = frozen_upper(backbone, point) if delta_rank else []
    return Adapters(multiplexer, DeltaLayers(layers, delta_rank) if layers else None)


@dataclass(slots=True, eq=False)
class _Track:
    """One group on its way through the layers: where its prefill ends its samples become composites, whose shortcuts
    and their mask are `own`."""

    group: Group
    states: States
    words: Words | None
    own: tuple[Tensor, Tensor] | None = field(default=None)
    prefilled: States | None = field(default=None)

    @property
    def point(self) -> OperatingPoint:
        return self.group.point

    def runs(self, layer: int) -> bool:
        return self.group.start <= layer and self.point.runs(layer)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a batch came to, in the order of the samples that the plan was made for.

    `logits` `[S, C]`; `pooled` `[S, d]`, the states that the head read; `confidences` `[S]`, how sure each one's point
    is of its answer, or 1 where nobody asked. Where words are answered, logits are `[S, words, C]` with NaN after a
    text's last one, and pooled states the mean over its words. `states` holds, for every group of the plan that is not
    plain, its members' states where its prefill ended, so that any of them can go on from there (`prefilled`).
    """

    logits: Tensor
    pooled: Tensor
    confidences: Tensor
    states: dict[Group, States]
    lengths: dict[int, int]
    words: dict[int, Sequence[int]]

    def standing(self, group: Group, member: int) -> Prefilled:
        """The member at position `member` of a group that is not plain, as it stood where the prefill ended.

        Part of the batch's states, all of which stay while it is held.
        """
        number = group.members[member]
        own = self.states[group].text(member, self.lengths[number])
        return Prefilled(group.point.prefill, own, self.words.get(number))

    def prefilled(self, group: Group, member: int) -> Prefilled:
        """A copy of what is `standing` there: the batch's states are freed though this one waits."""
        own = self.standing(group, member)
        return replace(own, states=own.states.clone())


class MuxClassifier(nn.Module):
    """Prefill, multiplex, upper layers, demultiplex, head: for samples that sit at different points of one batch.

    `adapters` has those of every other point. Plain inference needs none and is always there. `executor` runs the
    layers: in PyTorch, as it is, until `use_backend` sets another.
    """

    def __init__(self, backbone: Backbone, adapters: Mapping[OperatingPoint, Adapters]) -> None:
        super().__init__()
        self.backbone = backbone
        self.executor: Executor[Any] = EagerExecutor(backbone)
        self.plain = OperatingPoint.plain(backbone.num_layers)
        self.points = (self.plain, *sorted(adapters))
        # Registered, so that `.to(device)` moves the frozen weights and the adapters together.
        self.frozen = backbone.model
        self.adapters = nn.ModuleDict({_key(point): module for point, module in adapters.items()})
        self.eval()

    def adapters_of(self, point: OperatingPoint) -> Adapters:
        return cast(Adapters, self.adapters[_key(point)])

    @torch.inference_mode()
    def forward(self, batch: MuxBatch, judged: bool = True) -> Outcome:
        """`judged`: somebody asks how sure points are of their answers."""
        groups = batch.plan.groups
        answered = self._answer(batch)
        rest = [group for group in groups if group not in answered]
        if rest:
            tracks = self._tracks(batch, rest)
            self._run(tracks)
            # One call for all: the head's matrix product is the same whatever the point.
            pooled = _cat([self._pool(track) for track in tracks])
            logits = self.backbone.head(pooled)
            if batch.words is not None:
                pooled, logits = batch.words.mean(pooled), batch.words.spread(logits)
            sizes = [len(track.group.members) for track in tracks]
            for track, read, own in zip(tracks, pooled.split(sizes), logits.split(sizes), strict=True):
                answered[track.group] = Answered(read, own, track.prefilled)
        outcomes = [answered[group] for group in groups]
        pooled, logits = _cat([own.pooled for own in outcomes]), _cat([own.logits for own in outcomes])
        if judged:
            points = [group.point for group in groups]
            confidences = _cat(
                [self._confidence(point, own.pooled, own.logits) for point, own in zip(points, outcomes, strict=True)]
            )
        else:
            # Small operations take long on a CPU whose caches the layers went through.
            confidences = logits.new_ones(len(logits))
        states = {group: own.states for group, own in answered.items() if own.states is not None}
        return Outcome(
            batch.in_order(logits),
            batch.in_order(pooled),
            batch.in_order(confidences),
            states,
            dict(zip(batch.plan.order, batch.lengths, strict=True)),
            {} if batch.words is None else dict(zip(batch.plan.order, batch.words.own, strict=True)),
        )

    def _confidence(self, point: OperatingPoint, pooled: Tensor, logits: Tensor) -> Tensor:
        learnt = None if point == self.plain else self.adapters_of(point).confidence
        return self.backbone.problem.confidence(logits) if learnt is None else learnt(pooled, logits)

    def _answer(self, batch: MuxBatch) -> dict[Group, Answered[Any]]:
        """What the executor answers in a call: all groups that start with tokens, or none."""
        groups = [group for group in batch.plan.groups if not group.start]
        points = [(group.point, len(group.members)) for group in groups]
        answers = self.executor.answer(points, batch.ids, batch.type_ids, batch.fresh_lengths) if groups else None
        return {} if answers is None else dict(zip(groups, answers, strict=True))

    def _tracks(self, batch: MuxBatch, groups: Sequence[Group]) -> list[_Track]:
        """These of the plan's groups, each with the states that it starts from: all of them, or all that start above
        the first layer."""
        own_groups = batch.plan.groups
        masks = batch.mask.split([len(group.members) for group in own_groups])
        fresh = [mask for group, mask in zip(own_groups, masks, strict=True) if group in groups and not group.start]
        embedded: Iterator[States] = iter(())
        if fresh:
            states = self.executor.embed(batch.ids, _cat(fresh), batch.type_ids, batch.fresh_lengths)
            embedded = iter(states.split(list(map(len, fresh))))
        prefilled = iter(batch.prefilled)
        tracks = []
        first = 0
        for group, mask in zip(own_groups, masks, strict=True):
            own = slice(first, first + len(group.members))
            first = own.stop
            if group in groups:
                states = self.executor.resume(next(prefilled), mask) if group.start else next(embedded)
                tracks.append(_Track(group, states, None if batch.words is None else batch.words[own]))
        return tracks

    def _run(self, tracks: list[_Track]) -> None:
        """Takes every track to the end of its point.

        All groups that run a frozen layer run it in one call, so samples of different points share every matrix
        product; composites of a point with layers of its own run those apart.
        """
        backbone = self.backbone
        for lo, hi in _spans([track.group for track in tracks], backbone.num_layers):
            for track in tracks:
                if track.point.prefill == lo and track.point != self.plain:
                    track.prefilled = track.states
                    multiplexer = self.adapters_of(track.point).multiplexer
                    track.states, *own = self.executor.multiplex(multiplexer, track.states)
                    track.own = own[0], own[1]
            active = [track for track in tracks if track.runs(lo)]
            apart = [track for track in active if self._runs_apart(track)]
            for track in apart:
                layers = self.adapters_of(track.point).layers(backbone, track.point, lo, hi)
                track.states = self.executor.run(track.states, layers, self._reads_firsts(hi, [track]))
            shared = [track for track in active if track not in apart]
            if shared:
                counts = [len(track.states) for track in shared]
                states = shared[0].states.join([track.states for track in shared[1:]])
                states = self.executor.run(states, backbone.layers(lo, hi), self._reads_firsts(hi, shared))
                for track, own_states in zip(shared, states.split(counts), strict=True):
                    track.states = own_states

    def _runs_apart(self, track: _Track) -> bool:
        """Whether a track is of composites that the frozen layers, or the shape of the other rows, do not fit."""
        if track.prefilled is None:
            return False
        adapters = self.adapters_of(track.point)
        return adapters.deltas is not None or not track.states.fits(track.prefilled)

    def _reads_firsts(self, layer: int, tracks: Sequence[_Track]) -> bool:
        """Whether these tracks end before `layer`, and the first position of each is all that is read of them then."""
        return (
            layer == self.backbone.num_layers
            and self.backbone.packs
            and all(
                track.words is None and (track.own is None or self.adapters_of(track.point).multiplexer.positionwise)
                for track in tracks
            )
        )

    def _pool(self, track: _Track) -> Tensor:
        if track.own is None:
            return self.executor.pool(track.states, track.words)
        multiplexer = self.adapters_of(track.point).multiplexer
        return self.executor.demultiplex(multiplexer, track.states, *track.own, track.words)


def _key(point: OperatingPoint) -> str:
    # A dot is torch's path separator and may not stand in a module's name.
    return point.name.replace(".", "_")


def _cat(tensors: list[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def _spans(groups: list[Group], num_layers: int) -> list[tuple[int, int]]:
    """The longest layer ranges within which no group multiplexes, and none starts or stops running layers."""
    edges = {0, num_layers}
    for group in groups:
        edges |= {group.start} | group.point.seams(num_layers)
    return list(pairwise(sorted(edges)))
