"""The engine alone: sequences a second at every point, measured in turn so that a noisy machine hits all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

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
    weights: in float32 beside OpenVINO, else in the backend's own precision.
    """

    point: str
    width: int
    prefill: int
    sequences_per_second: float
    speedup: float
    ideal_speedup: float
    over_reference: float

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


def measure_speed(
    classifier: MuxClassifier,
    samples: Sequence[Tokens],
    points: Iterable[OperatingPoint],
    pad_id: int,
    rounds: int,
    batch_tokens: int,
    progress: Callable[[], None] = lambda: None,
) -> list[Speed]:
    """Classifies all `samples` once per round and point, tokens to logits, in batches of `batch_tokens` padded tokens.

    Rounds go through the points in turn (A B A B); the plain one is always among them, since the others are compared
    with it, and so is the plain one in PyTorch where another backend runs the layers. `progress` is called after every
    round. The result is in the order of `points`, none twice.
    """
    measured = dict.fromkeys([*points, classifier.plain])
    contenders: dict[OperatingPoint | None, Callable[[], object]] = {
        point: partial(run_all, classifier, samples, point, pad_id, batch_tokens) for point in measured
    }
    if not isinstance(classifier.executor, EagerExecutor):
        reference = MuxClassifier(classifier.backbone, {})
        contenders[None] = partial(run_all, reference, samples, reference.plain, pad_id, batch_tokens)
    seconds = time_in_turn(contenders, rounds, progress)
    in_torch = seconds.get(None, seconds[classifier.plain])
    layers = classifier.backbone.num_layers
    return [
        Speed(
            point=point.name,
            width=point.width,
            prefill=point.prefill,
            sequences_per_second=len(samples) / statistics.median(seconds[point]),
            speedup=median_ratio(seconds[classifier.plain], seconds[point]),
            ideal_speedup=point.ideal_speedup(layers),
            over_reference=median_ratio(in_torch, seconds[point]),
        )
        for point in measured
    ]


def cascade_speedup(bundle: Bundle, samples: Sequence[Tokens], cascade: Cascade, rounds: int = 5) -> float:
    """The cascade's speed-up over the plain path on these samples, engine alone, measured in turn."""
    classifier, pad_id = bundle.classifier, bundle.tokenizer.pad_id
    plain = partial(run_all, classifier, samples, classifier.plain, pad_id, BATCH_TOKENS)
    own = partial(run_cascade, classifier, samples, cascade, pad_id, BATCH_TOKENS)
    return speedup_over(plain, own, rounds)
