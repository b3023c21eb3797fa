"""A plan's samples as tensors: the one thing that crosses from host to device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from revmux_core.plan import MuxPlan, Tokens


@dataclass(frozen=True, slots=True)
class MuxBatch:
    """Padded samples in plan order. `ids`, `mask`, `type_ids`: `[S, T]`, S samples, T the longest of them."""

    plan: MuxPlan
    ids: Tensor
    mask: Tensor
    type_ids: Tensor | None

    @property
    def tokens(self) -> int:
        """Positions that hold text, padding not counted."""
        return int(self.mask.sum())

    @property
    def padded_tokens(self) -> int:
        return self.ids.numel()

    def to(self, device: torch.device) -> MuxBatch:
        if self.ids.device == device:
            return self
        type_ids = None if self.type_ids is None else self.type_ids.to(device, non_blocking=True)
        return MuxBatch(
            self.plan, self.ids.to(device, non_blocking=True), self.mask.to(device, non_blocking=True), type_ids
        )


def collate(samples: Sequence[Tokens], plan: MuxPlan, pad_id: int = 0, padding_side: str = "right") -> MuxBatch:
    """Pads `samples` to their longest and lays them out in the order of `plan`.

    Raises `ValueError` when the plan was made for another number of samples.
    """
    if plan.samples != len(samples):
        raise ValueError(f"the plan holds {plan.samples} samples, got {len(samples)}")
    return MuxBatch(plan, *pad([samples[index] for index in plan.order], pad_id, padding_side))


def pad(samples: Sequence[Tokens], pad_id: int, padding_side: str) -> tuple[Tensor, Tensor, Tensor | None]:
    """Ids, mask and type ids, `[S, T]` each; type ids are None for models without segments."""
    longest = max(len(sample) for sample in samples)
    ids = np.full((len(samples), longest), pad_id, dtype=np.int64)
    mask = np.zeros_like(ids)
    type_ids = None if samples[0].type_ids is None else np.zeros_like(ids)
    for row, sample in enumerate(samples):
        columns = slice(0, len(sample)) if padding_side == "right" else slice(longest - len(sample), longest)
        ids[row, columns] = sample.ids
        mask[row, columns] = 1
        if type_ids is not None and sample.type_ids is not None:
            type_ids[row, columns] = sample.type_ids
    return torch.from_numpy(ids), torch.from_numpy(mask), None if type_ids is None else torch.from_numpy(type_ids)
