"""The engine alone: sequences a second at every point, measured in turn so that a noisy machine hits all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

from revmux_core.backends.base import Executor
from revmux_core.backends.eager import EagerExecutor
from revmux_core.bundle import Bundle
from revmux_core.cascade import Cascade
from revmux_core.classifier import MuxClassifier
from revmux_core.offline import BATCH_TOKENS, run_all, run_cascade
from revmux_core.plan import Tokens
from revmux_core.points import OperatingPoint

# Sentences written for this project, as long as those of SST-2's development set: mean 25 word pieces.
SAMPLE_TEXTS = Path(__file__).parent / "sample_texts.txt"


@dataclass(frozen=True, slots=True)
class Speed:
    """One point's speed.

    `speedup` is over the plain path, the median of the rounds' own ratios; `ideal_speedup` is that of the layer compute
    alone (`OperatingPoint.ideal_speedup`). `over_reference` is the speed-up over the plain path in PyTorch on the same
    weights: in float32 beside OpenVINO, else in the backend's own precision. `adapter_share` is the share of the time
    that went to multiplexing and demultiplexing: were they free, the speed-up would be `speedup / (1 - adapter_share)`.
    It is None on a GPU, which does them later than it is told to, and where a program does all of a point.
    """

    point: str
    width: int
    prefill: int
    sequences_per_second: float
    speedup: float
    ideal_speedup: float
    over_reference: float
    adapter_share: float | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


_Name = TypeVar("_Name")


def time_in_turn(
    contenders: Mapping[_Name, Callable[[], object]], rounds: int, progress: Callable[[], None] = lambda: None
) -> dict[_Name, list[float]]:
    """Seconds that every contender takes in every round; they run in turn, so that noise hits all alike.

    A first round that warms up is not counted. `progress` is called after every round.
    """
    seconds: dict[_Name, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, run in contenders.items():
            started = time.perf_counter()
            run()
            if turn:
                seconds[name].append(time.perf_counter() - started)
        progress()
    return seconds


def median_ratio(baseline: Sequence[float], own: Sequence[float]) -> float:
    """The speed-up over `baseline`: the median of the rounds' own ratios."""
    return statistics.median(base / mine for base, mine in zip(baseline, own, strict=True))


def speedup_over(baseline: Callable[[], object], own: Callable[[], object], rounds: int) -> float:
    """How many times as fast as `baseline` `own` is, measured in turn."""
    seconds = time_in_turn({"baseline": baseline, "own": own}, rounds)
    return median_ratio(seconds["baseline"], seconds["own"])


@dataclass(frozen=True, slots=True)
class Load:
    """`samples` for `classifier`, tokens to logits, in batches of `batch_tokens` padded tokens."""

    classifier: MuxClassifier
    samples: Sequence[Tokens]
    pad_id: int
    batch_tokens: int

    def run(self, point: OperatingPoint) -> None:
        """Classifies all samples once."""
        run_all(self.classifier, self.samples, point, self.pad_id, self.batch_tokens)


class _Watched:
    """Stands in for an executor, and adds up the `seconds` in which it multiplexes and demultiplexes."""

    def __init__(self, executor: Executor[Any]) -> None:
        self._executor = executor
        self.seconds = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._executor, name)

    def multiplex(self, *inputs: Any) -> Any:
        return self._timed(self._executor.multiplex, *inputs)

    def demultiplex(self, *inputs: Any) -> Any:
        return self._timed(self._executor.demultiplex, *inputs)

    def _timed(self, call: Callable[..., Any], *inputs: Any) -> Any:
        started = time.perf_counter()
        outcome = call(*inputs)
        self.seconds += time.perf_counter() - started
        return outcome


@contextmanager
def _watching(classifiers: Iterable[MuxClassifier]) -> Iterator[None]:
    """Has their executors watched."""
    executors = {classifier: classifier.executor for classifier in classifiers}
    for classifier, executor in executors.items():
        classifier.executor = cast(Executor[Any], _Watched(executor))
    try:
        yield
    finally:
        for classifier, executor in executors.items():
            classifier.executor = executor


def measure_speed(
    loads: Sequence[Load],
    points: Iterable[OperatingPoint],
    rounds: int,
    progress: Callable[[], None] = lambda: None,
) -> list[list[Speed]]:
    """Runs every load once per round and point; a list for each load, in the order of `points`, none twice.

    All classifiers must have the same points. Rounds go through loads and points in turn (A B A B); the plain one is
    always among them, since the others are compared with it, and so is the plain one in PyTorch where another backend
    runs the layers. `progress` is called after every round.
    """
    measured = dict.fromkeys([*points, loads[0].classifier.plain])
    contenders: dict[tuple[int, OperatingPoint | None], Callable[[], object]] = {}
    adapters: dict[tuple[int, OperatingPoint], list[float]] = {}

    def run(number: int, point: OperatingPoint) -> None:
        load = loads[number]
        watched = cast(_Watched, load.classifier.executor)
        before = watched.seconds
        load.run(point)
        adapters.setdefault((number, point), []).append(watched.seconds - before)

    for number, load in enumerate(loads):
        contenders |= {(number, point): partial(run, number, point) for point in measured}
        if not isinstance(load.classifier.executor, EagerExecutor):
            reference = replace(load, classifier=MuxClassifier(load.classifier.backbone, {}))
            contenders[number, None] = partial(reference.run, reference.classifier.plain)
    with _watching(load.classifier for load in loads):
        seconds = time_in_turn(contenders, rounds, progress)

    on_gpu = next(loads[0].classifier.parameters()).device.type == "cuda"

    def speed(number: int, load: Load, point: OperatingPoint) -> Speed:
        backbone = load.classifier.backbone
        own, plain = seconds[number, point], seconds[number, load.classifier.plain]
        # Without the round that warmed up.
        spent = adapters[number, point][1:]
        told = any(spent) or point == load.classifier.plain
        return Speed(
            point=point.name,
            width=point.width,
            prefill=point.prefill,
            sequences_per_second=len(load.samples) / statistics.median(own),
            speedup=median_ratio(plain, own),
            ideal_speedup=point.ideal_speedup(backbone.num_layers, load.classifier.executor.last_layer),
            over_reference=median_ratio(seconds.get((number, None), plain), own),
            adapter_share=median_ratio(spent, own) if told and not on_gpu else None,
        )

    return [[speed(number, load, point) for point in measured] for number, load in enumerate(loads)]


def cascade_speedup(bundle: Bundle, samples: Sequence[Tokens], cascade: Cascade, rounds: int = 5) -> float:
    """The cascade's speed-up over the plain path on these samples, engine alone, measured in turn."""
    classifier, pad_id = bundle.classifier, bundle.tokenizer.pad_id
    plain = partial(run_all, classifier, samples, classifier.plain, pad_id, BATCH_TOKENS)
    own = partial(run_cascade, classifier, samples, cascade, pad_id, BATCH_TOKENS)
    return speedup_over(plain, own, rounds)
