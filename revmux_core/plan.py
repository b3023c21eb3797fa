"""Plans: which samples run at which operating point, and with whom. Pure data: no torch, no clock."""

from __future__ import annotations

from dataclasses import dataclass

from revmux_core.points import OperatingPoint


@dataclass(frozen=True, slots=True)
class Tokens:
    """One tokenized sample: ids of shape `[T]`, special tokens included, never padded.

    `type_ids` (same length) tells the two texts of a pair apart; it is None for models that have no segments.
    """

    ids: list[int]
    type_ids: list[int] | None = None

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Group:
    """Samples of one operating point: every run of `point.width` consecutive members is one composite.

    Members are indices into the list of samples that the plan was made for. The first `start` layers were already run
    on them: they go on from their `Prefilled` states.
    """

    point: OperatingPoint
    members: tuple[int, ...]
    start: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.point.prefill:
            raise ValueError(f"a group of {self.point.name} cannot start after {self.start} layers")
        if not self.members or len(self.members) % self.point.width:
            raise ValueError(
                f"a group of width {self.point.width} needs a positive multiple of it as members, "
                f"got {len(self.members)}"
            )

    @property
    def composites(self) -> int:
        return len(self.members) // self.point.width


@dataclass(frozen=True, slots=True)
class MuxPlan:
    """One batch: groups that together hold every sample exactly once.

    Raises `ValueError` when a sample is missing or planned twice, so that no plan can lose or mix up an answer.
    """

    groups: tuple[Group, ...]

    def __post_init__(self) -> None:
        order = self.order
        if not order:
            raise ValueError("a plan needs at least one group")
        if sorted(order) != list(range(len(order))):
            raise ValueError("a plan must hold every sample 0..n-1 exactly once")

    @property
    def order(self) -> tuple[int, ...]:
        """Sample indices in the order in which their rows stand in the batch."""
        return tuple(member for group in self.groups for member in group.members)

    @property
    def samples(self) -> int:
        return sum(len(group.members) for group in self.groups)

    @property
    def composites(self) -> int:
        """Composites of width 2 or more."""
        return sum(group.composites for group in self.groups if group.point.width > 1)
