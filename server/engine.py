"""The device: one thread that owns the model and turns planned batches into scores."""

from __future__ import annotations

import asyncio
import math
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from revmux_core.backends import SHARDED
from revmux_core.batch import MuxBatch, Prefilled, cat_logits, collate
from revmux_core.bundle import Bundle
from revmux_core.classifier import Outcome
from revmux_core.plan import Group, MuxPlan, Tokens, places, split_by_length
from revmux_core.points import OperatingPoint
from server.adaptive import CostModel, Timing
from server.batcher import Scores
from server.device_memory import DeviceMemory
from server.errors import DeviceLost
from server.settings import Settings, SettingsError
from server.steps import Steps

Result = TypeVar("Result")

WARM_UP_LENGTHS = (32, 128)
"""Tokens of the warm-up's samples. Around them the first batches of a process pay for kernels and memory."""

WARM_UP_SECONDS = 0.2
"""What a batch of the warm-up may take on a CPU, about. Speeds are told from these, and full batches of all points took
a quarter of a start on two cores (`docs/performance.md`); while another model answers, its batches wait for one. A
GPU runs full ones: a few texts would hardly fill it, and say little of its speed (not measured yet)."""

SWITCH_SECONDS = 1e-4
"""How long the device's thread waits for the interpreter before it is given it (`sys.setswitchinterval`). After a batch
the event loop has all its answers to write, and by default it keeps the interpreter for 5 ms at a time: with 256
requests in flight no layers ran for 21% to 38% of the time, and for 16% to 30% with this
(`docs/performance/cpu.md`)."""

CPU_BATCH_TOKENS, CUDA_BATCH_TOKENS = 1024, 16384
"""Where throughput stops growing with the batch, while latency goes on to."""


@dataclass(frozen=True, slots=True)
class _Launched:
    """A step of a batch that was given to the device.

    `outcomes` are those of its parts, each with its members' positions in the step; `logits` (as `Outcome.logits`) and
    `confidences` `[S]` are on their way to the host, in the order of the parts. `begun` and `ended` are marks in a
    GPU's work, None on a CPU, where it took `seconds`.
    """

    outcomes: list[tuple[tuple[int, ...], Outcome]]
    logits: torch.Tensor
    confidences: torch.Tensor
    padded: int
    seconds: float
    begun: torch.cuda.Event | None = None
    ended: torch.cuda.Event | None = None

    def wait(self) -> float:
        """Returns once both have arrived: the seconds that the device took."""
        if self.begun is None or self.ended is None:
            return self.seconds
        self.ended.synchronize()
        return self.begun.elapsed_time(self.ended) / 1000

    def scores(self) -> tuple[list[np.ndarray], np.ndarray]:
        """Logits, `[C]` or a text's `[words, C]`, and confidences `[S]`, in the order of the step's members, once they
        have arrived. Both are NaN where the model answered with NaN or infinity.
        """
        logits, confidences = self.logits.numpy(), self.confidences.numpy()
        place = places([member for members, _ in self.outcomes for member in members])
        if place is not None:
            logits, confidences = logits[place], confidences[place]
        rows = list(logits)
        for members, outcome in self.outcomes:
            for number, words in outcome.words.items():
                rows[members[number]] = rows[members[number]][: len(words)]
        if np.isfinite(logits).sum() < sum(row.size for row in rows):
            for number, row in enumerate(rows):
                if not np.isfinite(row).all():
                    confidences[number] = row[:] = np.nan
        return rows, confidences

    def standing(self, numbers: Sequence[int]) -> dict[int, tuple[Outcome, Group, int]]:
        """Where the states are of every member that is not on the plain path, by its number among `numbers`."""
        return {
            numbers[members[row]]: (outcome, group, position)
            for members, outcome in self.outcomes
            for group in outcome.states
            for position, row in enumerate(group.members)
        }


Parts = Sequence[tuple[tuple[int, ...], MuxBatch]]
"""A step in parts of similar length, each with its members' positions in the step."""


class Engine:
    """Runs batches on `device`, one after the other.

    Collation runs in the caller's thread, so that it overlaps with the batch that the device thread computes. A GPU's
    results are awaited in another thread, so that the device thread can launch the next batch meanwhile and the GPU
    goes on with that at once. An engine that takes the place of another, `beside` it, runs in the same threads: the
    device has one batch at a time, whosever it is.
    """

    def __init__(
        self, bundle: Bundle, points: Sequence[OperatingPoint], device: torch.device, beside: Engine | None = None
    ) -> None:
        sys.setswitchinterval(SWITCH_SECONDS)
        self._bundle = bundle
        self._points = points
        self._device = device
        if beside is None:
            self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="revmux-device")
            self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="revmux-reader")
            self._free = threading.Lock()
        else:
            self._thread, self._reader, self._free = beside._thread, beside._reader, beside._free
        self._part_cost = math.inf
        self._problem = bundle.classifier.backbone.problem

    @property
    def packs(self) -> bool:
        """Whether unlike lengths in a batch cost next to nothing, see `Executor`."""
        return self._bundle.classifier.executor.packs

    @property
    def shares_cores(self) -> bool:
        """Whether the device is the CPU that everything else runs on, too."""
        return self._device.type == "cpu"

    async def run(self, samples: Sequence[Tokens | Prefilled], steps: Steps, here: bool) -> Scores:
        """Scores of `samples` after all their `steps`, and the states of those that are audited.

        Where `here` OpenVINO computes in the caller's thread, if the device is free: that saves two changes of threads.
        In PyTorch nothing was to be gained (`docs/performance/latency.md`). `steps.suspects` have no scores. Raises
        `DeviceLost` where the device can compute nothing any more.
        """
        parts = self._collate(samples, steps.step.plan)
        loop = asyncio.get_running_loop()
        if self._device.type == "cuda":
            launched = self._thread.submit(self._launch, parts, steps.judged)
            return await loop.run_in_executor(self._reader, lambda: self._read(launched, steps))

        def compute() -> Scores:
            return self._finish(self._launch(parts, steps.judged), steps, self._launch)

        # Behind a batch that was handed over before, or another model's that warms up, it waits in the thread.
        if here and self._bundle.classifier.executor.backend == "openvino" and self._free.acquire(blocking=False):
            try:
                return compute()
            finally:
                self._free.release()
        return await loop.run_in_executor(self._thread, self._alone, compute)

    def agrees(self, logits: Sequence[float], reference: Sequence[float]) -> bool:
        """Whether one sample's logits give the answer of the plain model's, as `Scores` have them."""
        return self._problem.agrees(logits, reference)

    def warm_up(self, max_batch_tokens: int) -> list[Timing]:
        """Runs every point at a few shapes, one composite and a batch of them, and says how long each took.

        From then on batches are run in parts of similar length wherever that costs less than their padding would.
        """
        sample = self._bundle.tokenizer([("warm", None)])[0]
        layers = self._bundle.classifier.backbone.num_layers
        timings: list[Timing] = []
        for length in sorted({min(length, self._bundle.tokenizer.max_tokens) for length in WARM_UP_LENGTHS}):
            words = None if sample.words is None else list(range(length))
            tokens = Tokens([sample.ids[0]] * length, words=words)
            for point in self._points:
                alone = self._timed(point, tokens, 1)
                # Those of a full batch, whose budget counts samples by what they cost, see `plan_batch`.
                count = int(max_batch_tokens / (length * point.ideal_cost(layers))) // point.width
                if self._device.type == "cpu":
                    count = min(count, max(int(WARM_UP_SECONDS / alone.seconds), 2))
                timings += [alone, self._timed(point, tokens, count)] if count > 1 else [alone]
        if not self.packs:
            self._part_cost = CostModel.fit(timings).start_tokens(self._bundle.classifier.plain)
        return timings

    def _timed(self, point: OperatingPoint, tokens: Tokens, composites: int) -> Timing:
        """How long so many of them take, each of the sample `tokens`."""
        rows = composites * point.width
        batch = self._collate([tokens] * rows, MuxPlan((Group(point, tuple(range(rows))),)))
        # The first run of a shape pays for kernels and memory, the second is what serving will pay. On a CPU that is
        # little beside a batch, once the point has run.
        for _ in range(1 if composites > 1 and self._device.type == "cpu" else 2):
            seconds = self._thread.submit(self._alone, lambda: self._launch(batch, True).wait()).result()
        return Timing(point, rows, len(tokens), seconds)

    def memory(self) -> DeviceMemory:
        """The memory of the GPU. Raises `RuntimeError` where the driver does not answer."""
        free, total = torch.cuda.mem_get_info(self._device)
        reserved, allocated = torch.cuda.memory_reserved(self._device), torch.cuda.memory_allocated(self._device)
        return DeviceMemory(total, total - free, reserved, allocated)

    def close(self) -> None:
        """Ends the threads, which must not be another engine's any more."""
        self._thread.shutdown()
        self._reader.shutdown()

    def _alone(self, work: Callable[[], Result]) -> Result:
        """What `work` comes to, while the device computes nothing else."""
        with self._free:
            return work()

    def _collate(self, samples: Sequence[Tokens | Prefilled], plan: MuxPlan) -> Parts:
        backbone, pad_id = self._bundle.classifier.backbone, self._bundle.tokenizer.pad_id
        parts = split_by_length(plan, list(map(len, samples)), self._part_cost, backbone.num_layers)
        return [
            (part.members, collate([samples[i] for i in part.members], part.plan, pad_id, backbone.padding_side))
            for part in parts
        ]

    def _read(self, launched: Future[_Launched], steps: Steps) -> Scores:
        """`_finish` on a GPU. Raises `DeviceLost` where its context is beyond use."""
        try:
            # A later step is launched behind the batch that was launched meanwhile, so that the GPU never waits for it.
            return self._finish(
                launched.result(), steps, lambda *step: self._thread.submit(self._launch, *step).result()
            )
        except Exception as error:
            try:
                # What corrupts a context, such as a failed assertion in a kernel, is an error of all later calls.
                torch.cuda.synchronize(self._device)
            except RuntimeError:
                raise DeviceLost from error
            raise

    def _finish(self, launched: _Launched, steps: Steps, launch: Callable[[Parts, bool], _Launched]) -> Scores:
        """Reads the first step's outcome and has `launch` run all that follow."""
        logits: dict[int, np.ndarray] = {}
        kept: dict[int, Prefilled] = {}
        seconds, padded = 0.0, 0
        while True:
            seconds += launched.wait()
            padded += launched.padded
            rows, confidences = launched.scores()
            members = steps.step.members
            logits.update(zip(members, rows, strict=True))
            standing = launched.standing(members)
            after = steps.advance(confidences.tolist())
            onward = {} if after is None else {number: standing.pop(number) for number in after.members}
            for number, (outcome, group, row) in standing.items():
                if steps.audits(number):
                    kept[number] = outcome.prefilled(group, row)
            if after is None:
                break
            states = [outcome.standing(group, row) for outcome, group, row in onward.values()]
            launched = launch(self._collate(states, after.plan), steps.judged)
        rows = [logits[number] for number in range(len(logits))]
        activate = self._problem.activate
        if self._problem.by_word:
            listed, activated = ([own.ravel().tolist() for own in each] for each in (rows, map(activate, rows)))
        else:
            stacked = np.stack(rows)
            listed, activated = stacked.tolist(), activate(stacked).tolist()
        return Scores(listed, activated, seconds, kept, padded)

    def _launch(self, parts: Parts, judged: bool) -> _Launched:
        """Gives all parts to the device, see `MuxClassifier.forward`; on a GPU it does not wait for any."""
        started = time.perf_counter()
        begun = self._mark()
        outcomes = [(members, self._bundle.classifier(batch.to(self._device), judged)) for members, batch in parts]
        # To pinned memory, as the copies are not waited for.
        logits, confidences = (
            cat_logits(rows).float().to("cpu", non_blocking=True)
            for rows in zip(*((outcome.logits, outcome.confidences) for _, outcome in outcomes), strict=True)
        )
        padded = sum(self._bundle.classifier.executor.positions(batch.lengths) for _, batch in parts)
        return _Launched(outcomes, logits, confidences, padded, time.perf_counter() - started, begun, self._mark())

    def _mark(self) -> torch.cuda.Event | None:
        """An event after all that the GPU was given so far; None on a CPU."""
        if self._device.type != "cuda":
            return None
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event


def resolve_device(settings: Settings) -> torch.device:
    """The device to serve on. Raises `SettingsError` for one that this machine or this PyTorch lacks."""
    if settings.device in ("auto", SHARDED):
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(settings.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise SettingsError("device", f"{settings.device} cannot be used here: {reason}") from error
    return device
