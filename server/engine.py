"""The device: one thread that owns the model and turns planned batches into scores."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from revmux_core.batch import MuxBatch, Prefilled, collate
from revmux_core.bundle import Bundle
from revmux_core.plan import Group, MuxPlan, Tokens, split_by_length
from revmux_core.points import OperatingPoint
from server.adaptive import CostModel, Timing
from server.batcher import Scores
from server.settings import Settings, SettingsError

WARM_UP_LENGTHS = (8, 32, 128)
"""Tokens of the warm-up's samples. Around them the first batches of a process pay for kernels and memory."""

CPU_BATCH_TOKENS, CUDA_BATCH_TOKENS = 1024, 16384
"""Where throughput stops growing with the batch, while latency goes on to."""


class Engine:
    """Runs batches on `device`, one after the other, in the order in which they were handed over.

    Collation runs in the caller's thread, so that it overlaps with the batch that the device thread computes.
    """

    def __init__(self, bundle: Bundle, points: Sequence[OperatingPoint], device: torch.device) -> None:
        self._bundle = bundle
        self._points = points
        self._device = device
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="revmux-device")
        self._part_cost = math.inf

    @property
    def packs(self) -> bool:
        """Whether unlike lengths in a batch cost next to nothing, see `Executor`."""
        return self._bundle.classifier.executor.packs

    def run(
        self, samples: Sequence[Tokens | Prefilled], plan: MuxPlan, thresholds: Sequence[float]
    ) -> asyncio.Future[Scores]:
        """Scores of `samples`, and the states of those whose confidence is under their threshold.

        The future raises `FloatingPointError` where the model answered with NaN or infinity.
        """
        parts = self._collate(samples, plan)
        return asyncio.get_running_loop().run_in_executor(self._thread, self._infer, parts, thresholds)

    def warm_up(self, max_batch_tokens: int) -> list[Timing]:
        """Runs every point at a few shapes, one composite and a full batch of them, and says how long each took.

        From then on batches are run in parts of similar length wherever that costs less than their padding would.
        """
        sample = self._bundle.tokenizer([("warm", None)])[0]
        layers = self._bundle.classifier.backbone.num_layers
        timings = []
        for length in sorted({min(length, self._bundle.tokenizer.max_tokens) for length in WARM_UP_LENGTHS}):
            tokens = Tokens([sample.ids[0]] * length, None if sample.type_ids is None else [0] * length)
            for point in self._points:
                # Of a batch of this cost, see `plan_batch`.
                rows = int(max_batch_tokens / (length * point.ideal_cost(layers)))
                full = max(rows // point.width, 1) * point.width
                for rows in sorted({point.width, full}, reverse=True):
                    batch = self._collate([tokens] * rows, MuxPlan((Group(point, tuple(range(rows))),)))
                    # The first run pays for kernels and memory; the second is what serving will pay.
                    for _ in range(2):
                        scores = self._thread.submit(self._infer, batch, [0.0] * rows).result()
                    timings.append(Timing(point, rows, length, scores.seconds))
        if not self.packs:
            self._part_cost = CostModel.fit(timings).start_tokens(self._bundle.classifier.plain)
        return timings

    def close(self) -> None:
        self._thread.shutdown()

    def _collate(self, samples: Sequence[Tokens | Prefilled], plan: MuxPlan) -> list[tuple[tuple[int, ...], MuxBatch]]:
        """The batch in parts of similar length, each with its samples' numbers."""
        backbone, pad_id = self._bundle.classifier.backbone, self._bundle.tokenizer.pad_id
        parts = split_by_length(plan, list(map(len, samples)), self._part_cost, backbone.num_layers)
        return [
            (part.members, collate([samples[i] for i in part.members], part.plan, pad_id, backbone.padding_side))
            for part in parts
        ]

    def _infer(self, parts: Sequence[tuple[tuple[int, ...], MuxBatch]], thresholds: Sequence[float]) -> Scores:
        begun = time.perf_counter()
        # All are given to the device before the first is read back.
        outcomes = [(members, self._bundle.classifier(batch.to(self._device))) for members, batch in parts]
        order = [member for members, _ in outcomes for member in members]
        place = np.argsort(order)
        logits = np.concatenate([outcome.logits.float().cpu().numpy() for _, outcome in outcomes])[place]
        confidences = np.concatenate([outcome.confidences.float().cpu().numpy() for _, outcome in outcomes])[place]
        kept = {
            members[row]: outcome.prefilled(group, position)
            for members, outcome in outcomes
            for group in outcome.states
            for position, row in enumerate(group.members)
            if confidences[members[row]] < thresholds[members[row]]
        }
        seconds = time.perf_counter() - begun
        if not np.isfinite(logits).all():
            raise FloatingPointError("the model answered with NaN or infinity")
        padded = sum(self._bundle.classifier.executor.positions(batch.lengths) for _, batch in parts)
        return Scores(logits.tolist(), softmax(logits).tolist(), confidences.tolist(), seconds, kept, padded)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Softmax of logits `[S, C]`: the probabilities."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def resolve_device(settings: Settings) -> torch.device:
    """The device to serve on. Raises `SettingsError` for one that this machine or this PyTorch lacks."""
    if settings.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(settings.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise SettingsError("device", f"{settings.device} cannot be used here: {reason}") from error
    return device
