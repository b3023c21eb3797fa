"""A plan's samples as tensors: the one thing that crosses from host to device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from revmux_core.plan import MuxPlan, Tokens, places


@dataclass(frozen=True, slots=True)
class Prefilled:
    """A sample whose first `depth` layers were already run: the states after them, `[T, d]`, without padding.

    `words` are those of its `Tokens`.
    """

    depth: int
    states: Tensor
    words: Sequence[int] | None = None

    def __len__(self) -> int:
        return len(self.states)


@dataclass(frozen=True, slots=True)
class Words:
    """Where the words of some samples are read, W words in all, sample after sample.

    `samples` `[W]` numbers the sample of every word, `positions` `[W]` is where its first word piece stands, and `nth`
    `[W]` counts the words of its sample. `own` has the positions by sample, as `Tokens.words`, on the host.
    """

    samples: Tensor
    positions: Tensor
    nth: Tensor
    own: tuple[Sequence[int], ...]

    @classmethod
    def of(cls, own: Sequence[Sequence[int]]) -> Words:
        """The words of samples that stand at these positions."""
        counts = list(map(len, own))
        return cls(
            torch.from_numpy(np.repeat(np.arange(len(counts)), counts)),
            torch.tensor([position for words in own for position in words], dtype=torch.long),
            torch.tensor([nth for count in counts for nth in range(count)], dtype=torch.long),
            tuple(own),
        )

    def to(self, device: torch.device) -> Words:
        """The same on `device`; to a GPU as a batch goes there, see `MuxBatch.to`."""
        samples, positions, nth = (move(tensor, device) for tensor in (self.samples, self.positions, self.nth))
        return Words(samples, positions, nth, self.own)

    def __getitem__(self, part: slice) -> Words:
        """The words of neighbouring samples, which are numbered from 0 on."""
        first, last, _ = part.indices(len(self.own))
        rows = slice(sum(map(len, self.own[:first])), sum(map(len, self.own[:last])))
        return Words(self.samples[rows] - first, self.positions[rows], self.nth[rows], self.own[part])

    def read(self, states: Tensor) -> Tensor:
        """What stands there in states `[S, T, k]` of the samples: `[W, k]`."""
        return states[self.samples, self.positions]

    def mean(self, states: Tensor) -> Tensor:
        """Of the words' states `[W, k]` the samples' means, `[S, k]`; 0 without words."""
        sums = states.new_zeros(len(self.own), states.shape[1]).index_add_(0, self.samples, states)
        counts = states.new_zeros(len(self.own), 1).index_add_(0, self.samples, torch.ones_like(states[:, :1]))
        return sums / counts.clamp(min=1)

    def spread(self, rows: Tensor) -> Tensor:
        """The words' logits `[W, C]` by sample, `[S, words, C]`, NaN after a sample's last word."""
        most = max(1, *map(len, self.own))
        spread = rows.new_full((len(self.own), most, rows.shape[1]), torch.nan)
        spread[self.samples, self.nth] = rows
        return spread


def cat_logits(parts: Sequence[Tensor]) -> Tensor:
    """Logits `[S, C]` or `[S, words, C]` of several batches as one, with NaN where a batch had fewer words."""
    if len(parts) == 1:
        return parts[0]
    if parts[0].ndim == 3:
        most = max(part.shape[1] for part in parts)
        parts = [F.pad(part, (0, 0, 0, most - part.shape[1]), value=torch.nan) for part in parts]
    return torch.cat(list(parts))


@dataclass(frozen=True, slots=True)
class MuxBatch:
    """Padded samples in plan order, S of them, T the longest.

    `mask` `[S, T]` is of all. `ids` and `type_ids` are of the samples that start with their tokens, `[F, T]`;
    `prefilled` has, for every group that starts above the first layer, its samples' states, `[T_s, d]` each. `place`
    `[S]` is the row of every sample in the order in which the plan numbers them, None where they stand in that order.
    `words` is None where texts have one answer.
    """

    plan: MuxPlan
    lengths: tuple[int, ...]
    mask: Tensor
    ids: Tensor
    type_ids: Tensor | None
    place: Tensor | None
    prefilled: tuple[Sequence[Tensor], ...] = ()
    words: Words | None = None

    @property
    def fresh_lengths(self) -> tuple[int, ...]:
        """The lengths of the samples that start with their tokens, `[F]`."""
        starts = (group.start for group in self.plan.groups for _ in group.members)
        return tuple(length for length, start in zip(self.lengths, starts, strict=True) if not start)

    def in_order(self, rows: Tensor) -> Tensor:
        """What there is for every row, `[S, ...]`, in the order in which the plan numbers the samples."""
        return rows if self.place is None else rows.index_select(0, self.place)

    def to(self, device: torch.device) -> MuxBatch:
        """The batch on `device`.

        It goes to a GPU from pinned memory: only from there is the copy the GPU's own work, which the caller does not
        wait for. PyTorch keeps what is pinned until it was copied, and uses it again for the next batch.
        """
        if self.mask.device == device:
            return self
        return replace(
            self,
            mask=move(self.mask, device),
            ids=move(self.ids, device),
            type_ids=None if self.type_ids is None else move(self.type_ids, device),
            place=None if self.place is None else move(self.place, device),
            words=None if self.words is None else self.words.to(device),
        )


def move(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` of the host on `device`; to a GPU as `MuxBatch.to` does."""
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


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
            prefilled.append(states)
    ids, mask, type_ids = pad(fresh, pad_id, padding_side, longest)
    if prefilled:
        mask = make_mask(lengths, longest, padding_side)
    place = places(order)
    # Encoders alone answer by word, and they are padded on the right, so positions are the same in the batch.
    words = [samples[index].words for index in order]
    read = None if words[0] is None else Words.of([own or [] for own in words])
    rows = None if place is None else torch.from_numpy(place)
    return MuxBatch(plan, lengths, mask, ids, type_ids, rows, tuple(prefilled), read)


def make_mask(lengths: Sequence[int], longest: int, padding_side: str) -> Tensor:
    """`[S, T]`, 1 where a row holds text."""
    return torch.from_numpy(_held(lengths, longest, padding_side).astype(np.int64))


def pad(
    samples: Sequence[Tokens], pad_id: int, padding_side: str, longest: int | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Ids, mask and type ids, `[S, T]` each; type ids are None where no sample has any.

    T is `longest`, or the length of the longest sample.
    """
    lengths = [len(sample.ids) for sample in samples]
    held = _held(lengths, max(lengths) if longest is None else longest, padding_side)
    ids = _placed([sample.ids for sample in samples], held, pad_id)
    type_ids = None
    if any(sample.type_ids is not None for sample in samples):
        type_ids = _placed([sample.type_ids or [0] * len(sample.ids) for sample in samples], held, 0)
    return ids, torch.from_numpy(held.astype(np.int64)), type_ids


def _placed(rows: Sequence[Sequence[int]], held: np.ndarray, fill: int) -> Tensor:
    """`[S, T]`, with the numbers of `rows` where `held` `[S, T]` holds text, and `fill` elsewhere."""
    placed = np.full(held.shape, fill, dtype=np.int64)
    # All rows at once: row after row of `held` is sample after sample.
    placed[held] = np.fromiter(chain.from_iterable(rows), np.int64, sum(map(len, rows)))
    return torch.from_numpy(placed)


def _held(lengths: Sequence[int], longest: int, padding_side: str) -> np.ndarray:
    """`[S, T]`, whether a row holds text there."""
    positions = np.arange(longest)[None, :]
    ends = np.asarray(lengths, dtype=np.int64)[:, None]
    return positions < ends if padding_side == "right" else positions >= longest - ends
