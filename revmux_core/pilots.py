"""Which operating point to train for a target: short pilots, a small model fitted to them, a prediction for the rest.

Auto-PruMUX (Su et al. 2023) chose a width and a pruning rate by interpolating measured tasks. Here the frozen model is
the reference, so pilots need no labels, and speed needs no training: every candidate's is measured.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from revmux_core.backbones import Backbone
from revmux_core.benchmark import median_ratio, time_in_turn
from revmux_core.classifier import Adapters, MuxClassifier, make_adapters
from revmux_core.errors import RevmuxError
from revmux_core.evaluation import draws_at, evaluate, plain_answers
from revmux_core.multiplexing import make_multiplexer, method_at
from revmux_core.offline import BATCH_TOKENS, run_all
from revmux_core.plan import Tokens
from revmux_core.points import OperatingPoint
from revmux_core.training.adapters import train_adapters
from revmux_core.training.cache import FrozenStates, compute_states
from revmux_core.training.loop import Schedule, default_precision
from revmux_core.training.losses import LossWeights

WIDTHS = (2, 4, 8)
_TRAIN, _HELD_OUT = 6000, 800
_EPOCHS = (1.0, 2.0)
_ROUNDS = 3
_DRAWS = 3
_COEFFICIENTS = 4


@dataclass(frozen=True, slots=True)
class Pilot:
    """A short training: what it saw, and how often it then answered as the frozen model."""

    point: OperatingPoint
    samples_seen: int
    agreement: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a point is expected to reach after the whole training; `speedup` is measured, on held-out text."""

    point: OperatingPoint
    agreement: float
    speedup: float


def pilot_points(num_layers: int, widths: Sequence[int]) -> list[OperatingPoint]:
    """The corners and the middle of (width, prefill): what the fit needs to tell the two influences apart."""
    low, high = max(1, num_layers // 6), max(1, num_layers // 2)
    corners = [(width, prefill) for width in (min(widths), max(widths)) for prefill in (low, high)]
    middle = (sorted(widths)[len(widths) // 2], (low + high) // 2)
    return [OperatingPoint.mux(*place, num_layers) for place in dict.fromkeys([*corners, middle])]


def fit(pilots: Sequence[Pilot], num_layers: int) -> Callable[[OperatingPoint, int], float]:
    """Least squares of the log disagreement over prefill share, log width and log of the samples seen.

    Returns the predicted agreement of a point after a number of samples. More training never predicts less: the
    exponent of the learning curve is kept at or below 0. Raises `RevmuxError` for fewer pilots than coefficients.
    """
    if len(pilots) < _COEFFICIENTS:
        raise RevmuxError(f"a fit needs at least {_COEFFICIENTS} pilots, got {len(pilots)}")

    def features(point: OperatingPoint, seen: int) -> list[float]:
        return [1.0, point.prefill / num_layers, math.log2(point.width), math.log(seen)]

    rows = np.array([features(pilot.point, pilot.samples_seen) for pilot in pilots])
    # Half a disagreement where a pilot had none: its logarithm must stay finite.
    target = np.log([max(1 - pilot.agreement, 0.5 / _HELD_OUT) for pilot in pilots])
    coefficients = np.linalg.lstsq(rows, target, rcond=None)[0]
    if coefficients[3] > 0:
        coefficients = np.append(np.linalg.lstsq(rows[:, :3], target, rcond=None)[0], 0.0)
    return lambda point, seen: 1 - min(1.0, math.exp(float(np.dot(features(point, seen), coefficients))))


def choose(predictions: Iterable[Prediction], agreement: float | None, speedup: float | None) -> Prediction:
    """The fastest point that is expected to reach `agreement`, or the most faithful that reaches `speedup`.

    Raises `RevmuxError` where no point does, with the best that can be expected.
    """
    predictions = list(predictions)
    if agreement is not None:
        able = [p for p in predictions if p.agreement >= agreement and p.speedup > 1]
        if not able:
            best = max(p.agreement for p in predictions)
            raise RevmuxError(f"no point is expected to reach an agreement of {agreement:g}: the best is {best:.3f}")
        return max(able, key=lambda p: p.speedup)
    able = [p for p in predictions if speedup is None or p.speedup >= speedup]
    if not able:
        best = max(p.speedup for p in predictions)
        raise RevmuxError(f"no point reaches {speedup:g} times the plain throughput: the best reaches {best:.2f}")
    return max(able, key=lambda p: p.agreement)


def predict(
    classifier: MuxClassifier,
    samples: Sequence[Tokens],
    pad_id: int,
    epochs: float,
    device: torch.device,
    seed: int = 0,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[list[Pilot], list[Prediction]]:
    """Trains pilots on a few thousand of the `samples`, predicts all early exits and all `WIDTHS` x prefill depths.

    Early exits have a fit of their own: their disagreement falls faster with depth than that of composites. `epochs`
    is the length of the training that is predicted, over all samples. Raises `RevmuxError` for fewer than 200 samples,
    or a hidden size that no width divides.
    """
    backbone = classifier.backbone
    if len(samples) < 200:
        raise RevmuxError(f"pilots need at least 200 texts, got {len(samples)}")
    widths = [width for width in WIDTHS if backbone.hidden_size % width == 0]
    if not widths:
        raise RevmuxError(f"no width of {WIDTHS} divides the hidden size {backbone.hidden_size}")
    order = np.random.default_rng(seed).permutation(len(samples))
    held = min(_HELD_OUT, len(samples) // 5)
    held_out = [samples[i] for i in order[:held]]
    train = [samples[i] for i in order[held : held + _TRAIN]]
    reference = plain_answers(classifier, held_out, pad_id)
    layers = backbone.num_layers
    exits = [OperatingPoint(1, depth, ()) for depth in range(1, layers)]
    composites = [OperatingPoint.mux(width, prefill, layers) for width in widths for prefill in range(layers)]
    pilots: list[Pilot] = []
    predicted: dict[OperatingPoint, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        states = compute_states(
            backbone, train, range(1, layers), Path(scratch), pad_id, device, default_precision(device)
        )
        # All exits train at once: a step of theirs costs next to nothing.
        for candidates, groups in ((composites, [[p] for p in pilot_points(layers, widths)]), (exits, [exits])):
            own = []
            for group in groups:
                for length in _EPOCHS:
                    say(f"pilot {', '.join(point.name for point in group)}: {length:g} epochs of {len(train)} texts")
                    folder = Path(scratch) / f"{group[0].name}-{length:g}"
                    trained = _trained(backbone, group, states, Schedule(length, 7e-4), folder, seed, device)
                    for point in group:
                        draws = draws_at(point, _DRAWS)
                        result = evaluate(trained, point, held_out, None, pad_id, draws, seed, reference=reference)
                        own.append(Pilot(point, round(length * len(train)), result.agreement))
            # A model of one or two layers has too few exits to fit.
            if len(own) >= _COEFFICIENTS:
                agreement = fit(own, layers)
                predicted |= {point: agreement(point, round(epochs * len(samples))) for point in candidates}
            pilots += own
    say("measuring speed")
    speedups = _speedups(classifier, list(predicted), held_out, pad_id, device)
    return pilots, [
        Prediction(point, agreement, speedup)
        for (point, agreement), speedup in zip(predicted.items(), speedups, strict=True)
    ]


def _untrained(backbone: Backbone, point: OperatingPoint) -> Adapters:
    multiplexer = make_multiplexer(method_at(point.width), point.width, backbone.hidden_size)
    return make_adapters(backbone, point, multiplexer, 0)


def _trained(
    backbone: Backbone,
    points: Sequence[OperatingPoint],
    states: FrozenStates,
    schedule: Schedule,
    folder: Path,
    seed: int,
    device: torch.device,
) -> MuxClassifier:
    torch.manual_seed(seed)
    adapters = {point: _untrained(backbone, point) for point in points}
    precision = default_precision(device)
    train_adapters(backbone, adapters, states, None, LossWeights(), schedule, folder, seed, device, precision)
    return MuxClassifier(backbone, adapters).to(device)


def _speedups(
    classifier: MuxClassifier,
    points: Sequence[OperatingPoint],
    samples: Sequence[Tokens],
    pad_id: int,
    device: torch.device,
) -> list[float]:
    """Measured speed-ups of untrained points over the plain path, all in turn in every round."""
    backbone = classifier.backbone
    whole = MuxClassifier(backbone, {point: _untrained(backbone, point) for point in points}).to(device)
    timed = {point: partial(run_all, whole, samples, point, pad_id, BATCH_TOKENS) for point in whole.points}
    seconds = time_in_turn(timed, _ROUNDS)
    return [median_ratio(seconds[whole.plain], seconds[point]) for point in points]
