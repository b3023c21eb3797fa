"""What the frozen model says of every training sample, computed once: prefill states, pooled states and logits."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from revmux_core.backbones import Backbone
from revmux_core.batch import Words, pad
from revmux_core.plan import Tokens
from revmux_core.training.loop import autocast

_BATCH_TOKENS = 4096

_LARGEST = torch.finfo(torch.float16).max
"""T5's states may grow beyond what float16 holds; there Hugging Face's own layers clamp them as well."""


@dataclass(frozen=True)
class FrozenStates:
    """The teacher's view of the samples, so that no training step runs a frozen prefill layer.

    `logits` `[R, C]`; `pooled` `[R, d]`, the states that the head reads; `prefill[l]` `[all tokens, d]` in float16 on
    disk, the hidden states after l layers, sample s at rows `offsets[s]` to `offsets[s + 1]`. R are the samples, or all
    of their words one after the other where `words` has the positions of each sample's.
    """

    logits: Tensor
    pooled: Tensor
    prefill: dict[int, np.ndarray]
    offsets: np.ndarray
    words: Sequence[Sequence[int]] | None = None

    def words_of(self, indices: Sequence[int]) -> Words | None:
        """Where the words of these samples are read, numbered as the samples stand here; None where none are."""
        return None if self.words is None else Words.of([self.words[i] for i in indices])

    @cached_property
    def _ends(self) -> np.ndarray:
        assert self.words is not None
        return np.cumsum([len(own) for own in self.words])

    def rows(self, indices: Sequence[int]) -> Tensor:
        """Which of the R rows are these samples', one after the other."""
        if self.words is None:
            return torch.tensor(indices, dtype=torch.long)
        own = [np.arange(self._ends[i] - len(self.words[i]), self._ends[i]) for i in indices]
        return torch.from_numpy(np.concatenate(own))

    def prefilled(self, depth: int, indices: Sequence[int], padding_side: str) -> tuple[Tensor, Tensor]:
        """Prefill states `[S, T, d]` in float32, zero where padded, and their masks `[S, T]`."""
        states = self.prefill[depth]
        lengths = [int(self.offsets[i + 1] - self.offsets[i]) for i in indices]
        hidden = np.zeros((len(lengths), max(lengths), states.shape[1]), dtype=np.float32)
        mask = np.zeros(hidden.shape[:2], dtype=np.int64)
        for row, (index, length) in enumerate(zip(indices, lengths, strict=True)):
            columns = slice(0, length) if padding_side == "right" else slice(-length, None)
            hidden[row, columns] = states[self.offsets[index] : self.offsets[index + 1]]
            mask[row, columns] = 1
        return torch.from_numpy(hidden), torch.from_numpy(mask)


@torch.no_grad()
def compute_states(
    backbone: Backbone,
    samples: Sequence[Tokens],
    depths: Sequence[int],
    folder: Path,
    pad_id: int,
    device: torch.device,
    precision: str,
) -> FrozenStates:
    """Runs the frozen model once over all samples, keeping the hidden states at `depths` (layers).

    The states go to unnamed files in `folder` that vanish with the process: 2 x d bytes a token and depth.
    """
    lengths = np.array([len(sample) for sample in samples])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    shape = (int(offsets[-1]), backbone.hidden_size)
    prefill: dict[int, np.ndarray] = {}
    for depth in sorted(set(depths)):
        with tempfile.TemporaryFile(dir=folder) as file:
            prefill[depth] = np.memmap(file, dtype=np.float16, mode="w+", shape=shape)
    words = None if samples[0].words is None else [sample.words or [] for sample in samples]
    logits: list[Tensor] = []
    pooled: list[Tensor] = []
    order = np.argsort(-lengths, kind="stable")
    edges = [0, *sorted(prefill), backbone.num_layers]
    with tqdm(total=len(samples), desc="frozen states", unit="sample") as bar:
        start = 0
        while start < len(order):
            indices = order[start : start + max(1, _BATCH_TOKENS // int(lengths[order[start]]))]
            ids, mask, type_ids = pad([samples[i] for i in indices], pad_id, backbone.padding_side)
            ids, mask = ids.to(device), mask.to(device)
            type_ids = None if type_ids is None else type_ids.to(device)
            with autocast(device, precision):
                hidden = backbone.embed(ids, mask, type_ids)
                for lo, hi in pairwise(edges):
                    if lo < hi:
                        hidden = backbone.run(hidden, mask, backbone.layers(lo, hi))
                    if hi in prefill:
                        kept = hidden.clamp(-_LARGEST, _LARGEST).to("cpu", torch.float16).numpy()
                        for row, index in enumerate(indices):
                            prefill[hi][offsets[index] : offsets[index + 1]] = kept[row][mask[row].bool().cpu().numpy()]
                state = backbone.pool(hidden, torch.arange(len(indices), device=device), mask)
                counts = [1] * len(indices)
                if words is not None:
                    read = Words.of([words[i] for i in indices])
                    state, counts = read.to(device).read(state), list(map(len, read.own))
                logits += backbone.head(state).float().cpu().split(counts)
                pooled += state.float().cpu().split(counts)
            start += len(indices)
            bar.update(len(indices))
    inverse = np.argsort(order).tolist()
    answers, states = (torch.cat([rows[i] for i in inverse]) for rows in (logits, pooled))
    return FrozenStates(answers, states, prefill, offsets, words)
