"""One batch's way through its cascades: who goes on after a step, where, and with whom. Pure: no torch, no clock."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from revmux_core.cascade import Cascade
from revmux_core.plan import MuxPlan
from revmux_core.points import OperatingPoint
from server.planner import Menu, Sample, group_samples


@dataclass(frozen=True, slots=True)
class Step:
    """What runs next: `members` are numbers of the batch's samples, in the order in which `plan` numbers them."""

    members: tuple[int, ...]
    plan: MuxPlan


@dataclass(frozen=True, slots=True)
class _Escalated:
    """A sample that its cascade was not sure of, as the planner sees it."""

    length: int
    max_width: int
    guaranteed: bool
    audited: bool
    scope: Hashable
    start: int
    resumes_at: OperatingPoint


class Steps:
    """The steps of one batch of `samples`, the first of them planned as `plan`.

    What a step of a certified cascade is not sure of goes on in the same batch, from the states that it stands at: its
    request waits for one batch only, and nothing else runs in between. Afterwards `points` has where every sample was
    answered, `cascades` the cascade that decided so (None: nothing did), and `tokens` and `composites` are what all
    steps held. `suspects` are the samples that have no answer: not finite, or of a composite that held one such.
    `shortened` are those that went to the plain path from an earlier step of their cascade than its last, as too few
    were left for the others to pay (`Menu.gain`).
    """

    def __init__(self, samples: Sequence[Sample], plan: MuxPlan, menu: Menu) -> None:
        self._samples = samples
        self._menu = menu
        self.step = Step(tuple(range(len(samples))), plan)
        self.points = [menu.plain] * len(samples)
        self.cascades: list[Cascade | None] = [None] * len(samples)
        self.tokens = self.composites = 0
        self.suspects: set[int] = set()
        self.shortened: set[int] = set()
        self._count()
        for number, sample in enumerate(samples):
            if sample.guaranteed:
                self.cascades[number] = menu.cascade_from(self.points[number])

    def escalated(self, number: int) -> bool:
        """Whether a sample's cascade was sure of it at no step, so that the plain path answered it."""
        return self.cascades[number] is not None and self.points[number] == self._menu.plain

    @property
    def judged(self) -> bool:
        """Whether a sample goes on after the current step if its point is not sure of it."""
        return any(
            self.cascades[number] is not None and self.points[number] != self._menu.plain
            for number in self.step.members
        )

    def audits(self, number: int) -> bool:
        """Whether the states of a sample that was answered are wanted, for the plain path to go on from."""
        wanted = self._samples[number].audited and self.points[number] != self._menu.plain
        return wanted and number not in self.suspects

    def advance(self, confidences: Sequence[float]) -> Step | None:
        """What runs after the current step, whose members came out as sure as `confidences`; None ends the batch.

        A confidence of NaN says that what the model answered is not finite.
        """
        broken = {member for member, confidence in enumerate(confidences) if math.isnan(confidence)}
        if broken:
            composites = [partners for group in self.step.plan.groups for partners in group.partners()]
            suspects = set[int]().union(*(partners for partners in composites if not broken.isdisjoint(partners)))
            self.suspects |= {self.step.members[member] for member in suspects}
        unsure: dict[tuple[Cascade, int], list[int]] = {}
        for number, confidence in zip(self.step.members, confidences, strict=True):
            cascade, point = self.cascades[number], self.points[number]
            if cascade is None or point == self._menu.plain or number in self.suspects:
                continue
            step = cascade.points.index(point)
            if confidence < cascade.thresholds[step]:
                unsure.setdefault((cascade, step + 1), []).append(number)
        onward: list[_Escalated] = []
        numbers: list[int] = []
        for (cascade, level), own in unsure.items():
            point = cascade.at(level)
            if self._menu.gain(cascade, level, sum(self._samples[number].length for number in own)) < 0:
                point = self._menu.plain
                self.shortened.update(own)
            for number in own:
                sample = self._samples[number]
                numbers.append(number)
                onward.append(
                    _Escalated(
                        sample.length,
                        sample.max_width,
                        sample.guaranteed,
                        sample.audited,
                        sample.scope,
                        cascade.start(level),
                        point,
                    )
                )
        if not onward:
            return None
        planned = group_samples(onward, range(len(onward)), self._menu)
        self.step = Step(tuple(numbers[position] for position in planned.members), planned.plan)
        self._count()
        return self.step

    def _count(self) -> None:
        members = self.step.members
        for group in self.step.plan.groups:
            for member in group.members:
                self.points[members[member]] = group.point
        self.tokens += sum([self._samples[number].length for number in members])
        self.composites += self.step.plan.composites
