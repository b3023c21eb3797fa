"""Which batches a failed one is tried again in. Pure: no torch, no clock, no queue."""

from __future__ import annotations

from collections.abc import Sequence

from revmux_core.points import OperatingPoint
from server.planner import Menu, PlannedBatch, Sample, group_samples


def failed_alone(points: Sequence[OperatingPoint], plain: OperatingPoint) -> bool:
    """Whether a batch whose samples were at `points` when it failed leaves no doubt which of them it failed on."""
    return list(points) == [plain]


def halves(suspects: Sequence[Sample], menu: Menu) -> list[PlannedBatch]:
    """Batches of the shorter and of the longer half of `suspects`, or of the only one, on the plain path.

    There nobody has partners. A batch takes the memory of its longest text times its samples: halves of unlike length
    take less than half of it. With k of n samples that fail, at most 2 k ceil(log2 n) + 2 batches are tried in all.
    """
    order = sorted(range(len(suspects)), key=lambda position: suspects[position].length)
    middle = len(order) // 2
    plain = Menu((menu.plain,))
    return [group_samples(suspects, half, plain) for half in (order[:middle], order[middle:]) if half]
