"""The device: one thread that owns the model and turns planned batches into scores."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from revmux_core.backends.select import default_dtype
from revmux_core.batch import MuxBatch, Prefilled, collate
from revmux_core.bundle import Bundle
from revmux_core.plan import Group, MuxPlan, Tokens
from revmux_core.points import OperatingPoint
from server.adaptive import Timing
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

    def run(
        self, samples: Sequence[Tokens | Prefilled], plan: MuxPlan, thresholds: Sequence[float]
    ) -> asyncio.Future[Scores]:
        """Scores of `samples`, and the states of those whose confidence is under their threshold.

        The future raises `FloatingPointError` where the model answered with NaN or infinity.
        """
        batch = self._collate(samples, plan)
        return asyncio.get_running_loop().run_in_executor(self._thread, self._infer, batch, thresholds)

    def warm_up(self, max_batch_tokens: int) -> list[Timing]:
        """Runs every point at a few shapes, one composite and a full batch of them, and says how long each took."""
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
        return timings

    def close(self) -> None:
        self._thread.shutdown()

    def _collate(self, samples: Sequence[Tokens | Prefilled], plan: MuxPlan) -> MuxBatch:
        tokenizer = self._bundle.tokenizer
        return collate(samples, plan, tokenizer.pad_id, self._bundle.classifier.backbone.padding_side)

    def _infer(self, batch: MuxBatch, thresholds: Sequence[float]) -> Scores:
        begun = time.perf_counter()
        outcome = self._bundle.classifier(batch.to(self._device))
        logits = outcome.logits.float().cpu().numpy()
        confidences = outcome.confidences.float().cpu().numpy()
        kept = {
            member: outcome.prefilled(group, place)
            for group in outcome.states
            for place, member in enumerate(group.members)
            if confidences[member] < thresholds[member]
        }
        seconds = time.perf_counter() - begun
        if not np.isfinite(logits).all():
            raise FloatingPointError("the model answered with NaN or infinity")
        return Scores(logits.tolist(), softmax(logits).tolist(), confidences.tolist(), seconds, kept)


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


def resolve_dtype(settings: Settings, device: torch.device) -> torch.dtype:
    """The precision to serve in. Raises `RevmuxError` where the backend is not installed."""
    if settings.dtype == "auto":
        return default_dtype(settings.backend, device)
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[settings.dtype]
