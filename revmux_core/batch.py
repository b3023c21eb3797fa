"""A plan's samples as tensors: the one thing that crosses from host to device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from revmux_core.plan import MuxPlan, Tokens


@dataclass(frozen=True, slots=True)
class Prefilled:
    """A sample whose first `depth` layers were already run: the states after them, `[T, d]`, without padding."""

    depth: int
    states: Tensor

    def __len__(self) -> int:
        return len(self.states)


@dataclass(frozen=True, slots=True)
class MuxBatch:
    """Padded samples in plan order, S of them, T the longest.

    `mask` `[S, T]` is of all. `ids` and `type_ids` are of the samples that start with their tokens, `[F, T]`;
    `prefilled` has, for every group that starts above the first layer, its states `[S_group, T, d]`. `place` `[S]` is
    the row of every sample in the order in which the plan numbers them.
    """

    plan: MuxPlan
    lengths: tuple[int, ...]
    mask: Tensor
    ids: Tensor
    type_ids: Tensor | None
    place: Tensor
    prefilled: tuple[Tensor, ...] = ()

    def to(self, device: torch.device) -> MuxBatch:
        """The batch on `device`.

        It goes to a GPU from pinned memory: only from there is the copy the GPU's own work, which the caller does not
        wait for. PyTorch keeps what is pinned until it was copied, and uses it again for the next batch.
        """
        if self.mask.device == device:
            return self

        def move(tensor: Tensor) -> Tensor:
            return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)

        type_ids = None if self.type_ids is None else move(self.type_ids)
        return replace(self, mask=move(self.mask), ids=move(self.ids), type_ids=type_ids, place=move(self.place))


def collate(
    samples: Sequence[Tokens | Prefilled], plan: MuxPlan, pad_id: int = 0, padding_side: str = "right"
) -> MuxBatch:
    """Pads `samples` to their longest and lays them out in the order of `plan`; prefilled states stay on their device.

    Raises `ValueError` when the plan was made for other samples.
    """
    if plan.samples != len(samples):
        raise ValueError(f"the plan holds {plan.samples} samples, got {len(samples)}")
    order = plan.order
    lengths = tuple(len(samples[index]) for index in order)
    longest = max(lengths)
    fresh: list[Tokens] = []
    prefilled = []
    for group in plan.groups:
        members = [samples[index] for index in group.members]
        states = []
        for member in members:
            if isinstance(member, Tokens) and group.start == 0:
                fresh.append(member)
            elif isinstance(member, Prefilled) and group.start == member.depth:
                states.append(member.states)
            else:
                raise ValueError(f"the plan starts a sample after {group.start} layers, which it does not stand at")
        if states:
            padded = pad_sequence(states, batch_first=True, padding_side=padding_side)
            missing = longest - padded.shape[1]
            prefilled.append(F.pad(padded, (0, 0, 0, missing) if padding_side == "right" else (0, 0, missing, 0)))
    ids, _, type_ids = pad(fresh, pad_id, padding_side, longest)
    mask, place = make_mask(lengths, longest, padding_side), torch.from_numpy(np.argsort(order))
    return MuxBatch(plan, lengths, mask, ids, type_ids, place, tuple(prefilled))


def make_mask(lengths: Sequence[int], longest: int, padding_side: str) -> Tensor:
    """`[S, T]`, 1 where a row holds text."""
    positions = np.arange(longest)[None, :]
    ends = np.asarray(lengths, dtype=np.int64)[:, None]
    held = positions < ends if padding_side == "right" else positions >= longest - ends
    return torch.from_numpy(held.astype(np.int64))


def pad(
    samples: Sequence[Tokens], pad_id: int, padding_side: str, longest: int | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Ids, mask and type ids, `[S, T]` each; type ids are None for models without segments.

    T is `longest`, or the length of the longest sample.
    """
    lengths = [len(sample) for sample in samples]
    longest = max(lengths) if longest is None else longest
    ids = np.full((len(samples), longest), pad_id, dtype=np.int64)
    type_ids = None if not samples or samples[0].type_ids is None else np.zeros_like(ids)
    for row, sample in enumerate(samples):
        columns = slice(0, len(sample)) if padding_side == "right" else slice(longest - len(sample), longest)
        ids[row, columns] = sample.ids
        if type_ids is not None and sample.type_ids is not None:
            type_ids[row, columns] = sample.type_ids
    mask = make_mask(lengths, longest, padding_side)
    return torch.from_numpy(ids), mask, None if type_ids is None else torch.from_numpy(type_ids)
