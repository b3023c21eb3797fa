"""Runs an experiment's matrix on one machine: trains what is missing, measures it, keeps one JSON file a run."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from revmux_core.backbones import Backbone, view
from revmux_core.benchmark import speedup_over
from revmux_core.bundle import Bundle, load_bundle
from revmux_core.card import machine
from revmux_core.cascade import cascade_at_speed
from revmux_core.classifier import MuxClassifier, make_adapters
from revmux_core.data import Example, label_targets, read_examples
from revmux_core.evaluation import draws_at, evaluate, plain_answers
from revmux_core.experiments.matrix import CASCADE, INT8, PLAIN, STUDENT, Experiment, ExperimentError, Run, Task
from revmux_core.multiplexing import EARLY_EXIT, make_multiplexer, method_at
from revmux_core.offline import BATCH_TOKENS, run_all, run_cascade
from revmux_core.plan import Tokens
from revmux_core.points import OperatingPoint
from revmux_core.problems import SingleLabel
from revmux_core.training.adapters import train_adapters
from revmux_core.training.cache import FrozenStates, compute_states
from revmux_core.training.joining import join_texts
from revmux_core.training.loop import Schedule, default_precision
from revmux_core.training.losses import LossWeights
from revmux_core.training.run import Recipe, train
from revmux_core.training.student import train_student

_ROUNDS = 3
# All weights of a pre-trained model train: its usual learning rate, not that of fresh adapters.
_STUDENT_LEARNING_RATE = 1e-4


@dataclass(slots=True)
class _Prepared:
    """What all runs of one task share: its plain model, its text, and the plain model's labels of the held-out text."""

    bundle: Bundle
    examples: list[Example]
    eval_samples: list[Tokens]
    eval_labels: np.ndarray
    reference: np.ndarray
    text: dict[int, tuple[list[Tokens], np.ndarray]] = field(default_factory=dict)
    states: dict[tuple[object, ...], FrozenStates] = field(default_factory=dict)
    students: dict[str, tuple[Backbone, float]] = field(default_factory=dict)
    speedups: dict[tuple[object, ...], float] = field(default_factory=dict)


class Runner:
    """One experiment in one folder: `OUT/runs/KEY.json` are its results, `OUT/work` what training needs.

    A second call goes on where the first one stopped: runs with a result are not repeated, and a run that was
    interrupted goes on from its checkpoint.
    """

    def __init__(self, experiment: Experiment, data: Path, out: Path, base: Path | None, device: torch.device) -> None:
        self._experiment = experiment
        self._data, self._out, self._base = data, out, base
        self._device = device
        self._precision = default_precision(device)
        self._tasks: dict[str, _Prepared] = {}

    def run(self, say: Callable[[str], None]) -> list[dict[str, Any]]:
        """Results of all runs in the order of the file, see `_measure`. Raises `ExperimentError` and what training
        raises."""
        runs = self._experiment.expand()
        results = []
        for number, run in enumerate(runs, start=1):
            path = self._out / "runs" / f"{run.key}.json"
            if not path.is_file():
                say(f"[{number}/{len(runs)}] {run.key}")
                result = self._measure(run)
                path.parent.mkdir(parents=True, exist_ok=True)
                partial_path = path.with_suffix(".partial")
                partial_path.write_text(json.dumps(result, indent=1) + "\n")
                os.replace(partial_path, path)
            results.append(json.loads(path.read_text()))
        return results

    def _measure(self, run: Run) -> dict[str, Any]:
        task = self._task(run.task)
        num_layers = task.bundle.classifier.backbone.num_layers
        backbone, seconds = task.bundle.classifier.backbone, 0.0
        if run.layers is not None:
            backbone, seconds = self._student(run, task)
        points = _points(run, backbone.num_layers)
        parameters = 0
        if points:
            classifier, parameters, own_seconds = self._trained(run, task, backbone, points)
            seconds += own_seconds
        else:
            classifier = MuxClassifier(backbone, {})
        if run.int8 or run.method == INT8:
            classifier = _in_int8(classifier)
        classifier.to(self._device)
        if run.method == CASCADE:
            figures = _measure_cascade(run, task, classifier, points)
        else:
            point = points[0] if points else classifier.plain
            pad_id = task.bundle.tokenizer.pad_id
            draws = draws_at(point, self._experiment.draws)
            evaluation = evaluate(
                classifier,
                point,
                task.eval_samples,
                task.eval_labels,
                pad_id,
                draws,
                run.seed,
                reference=task.reference,
            )
            figures = evaluation.to_json() | {
                "speedup": _speedup(run, task, classifier, point),
                # Of the whole model's layers, also for a point of a pruned one.
                "ideal_speedup": point.ideal_speedup(num_layers),
            }
        return figures | {
            "run": run.model_dump(mode="json", exclude_none=True),
            "plain_accuracy": float((task.reference == task.eval_labels).mean()),
            "trained_parameters": parameters,
            "training_seconds": seconds,
            "precision": self._precision,
            "machine": machine(),
            "finished": int(time.time()),
        }

    def _trained(
        self, run: Run, task: _Prepared, backbone: Backbone, points: Sequence[OperatingPoint]
    ) -> tuple[MuxClassifier, int, float]:
        """The classifier with the adapters of `points`, trained together; how many parameters, how many seconds."""
        torch.manual_seed(run.seed)
        adapters = {}
        for point in points:
            multiplexer = make_multiplexer(method_at(point.width, run.method), point.width, backbone.hidden_size)
            adapters[point] = make_adapters(backbone, point, multiplexer, run.delta_rank)
        parameters = sum(p.numel() for own in adapters.values() for p in own.parameters() if p.requires_grad)
        states = self._states(run, task, backbone)
        _, labels = self._text(run, task)
        folder = self._out / "work" / run.key
        seconds = train_adapters(
            backbone,
            adapters,
            states,
            labels,
            _losses(run),
            _schedule(run),
            folder,
            run.seed,
            self._device,
            self._precision,
        )
        for own in adapters.values():
            if own.deltas is not None:
                own.deltas.merge()
        shutil.rmtree(folder)
        return MuxClassifier(backbone, adapters), parameters, seconds

    def _task(self, name: str) -> _Prepared:
        if name not in self._tasks:
            task = self._experiment.tasks[name]
            examples, held_out = self._read(task)
            bundle = load_bundle(task.bundle or self._tuned(name, task, examples), self._base, self._device)
            samples = bundle.tokenizer([(example.text, example.pair) for example in held_out])
            problem = bundle.classifier.backbone.problem
            if not isinstance(problem, SingleLabel):
                raise ExperimentError(f"task {name} is {problem.type}: experiments compare single labels only")
            labels = label_targets(held_out, problem, samples)
            if labels is None:
                raise ExperimentError(f"task {name}: the held-out text needs labels")
            reference = plain_answers(bundle.classifier, samples, bundle.tokenizer.pad_id)
            self._tasks[name] = _Prepared(bundle, examples, samples, labels, reference)
        return self._tasks[name]

    def _read(self, task: Task) -> tuple[list[Example], list[Example]]:
        columns = (task.text_column, task.pair_column, task.label_column)
        examples = read_examples(self._data / task.train, *columns)
        if task.eval is not None:
            held_out = read_examples(self._data / task.eval, *columns)
        else:
            held_out = examples[:: task.holdout]
            examples = [example for i, example in enumerate(examples) if i % task.holdout]
        stride = 1 if task.train_samples is None else max(1, len(examples) // task.train_samples)
        return examples[::stride][: task.train_samples], held_out

    def _tuned(self, name: str, task: Task, examples: Sequence[Example]) -> Path:
        """A bundle with nothing but the plain model, tuned on the task."""
        folder = self._out / "work" / f"{name}-plain"
        if not (folder / "bundle.json").is_file():
            schedule = Schedule(task.task_epochs, task.task_learning_rate, batch_size=32)
            recipe = Recipe(self._experiment.model, widths=(1,), labels=task.labels, task=schedule)
            train(recipe, examples, folder, name, self._base, self._device)
        return folder

    def _text(self, run: Run, task: _Prepared) -> tuple[list[Tokens], np.ndarray]:
        """The training samples and labels, joined texts among them where the run asks for those."""
        if run.join_rounds not in task.text:
            joined = join_texts(task.examples, run.join_rounds, seed=0)
            samples = task.bundle.tokenizer([(example.text, example.pair) for example in (*task.examples, *joined)])
            labels = label_targets(task.examples, task.bundle.classifier.backbone.problem, samples)
            if labels is None:
                raise ExperimentError(f"task {run.task}: the training text needs labels")
            task.text[run.join_rounds] = samples, labels
        return task.text[run.join_rounds]

    def _states(self, run: Run, task: _Prepared, backbone: Backbone) -> FrozenStates:
        """The frozen states that a run needs, for all depths that this experiment's runs on them need, at once.

        The teacher is always the whole plain model, also of adapters on a pruned backbone.
        """
        key = (run.join_rounds, run.layers, run.seed if run.layers else 0)
        if key not in task.states:
            samples, _ = self._text(run, task)
            alike = [
                other
                for other in self._experiment.expand()
                if (other.task, other.join_rounds, other.layers) == (run.task, run.join_rounds, run.layers)
            ]
            depths = sorted({point.prefill for other in alike for point in _points(other, backbone.num_layers)})
            states = self._compute(backbone, samples, depths, task)
            if run.layers is not None:
                teacher = self._teacher_states(run, task)
                states = replace(states, logits=teacher.logits, pooled=teacher.pooled)
            task.states[key] = states
        return task.states[key]

    def _teacher_states(self, run: Run, task: _Prepared) -> FrozenStates:
        """The plain model's logits and pooled states alone."""
        key = ("teacher", run.join_rounds)
        if key not in task.states:
            samples, _ = self._text(run, task)
            task.states[key] = self._compute(task.bundle.classifier.backbone, samples, [], task)
        return task.states[key]

    def _compute(
        self, backbone: Backbone, samples: Sequence[Tokens], depths: Sequence[int], task: _Prepared
    ) -> FrozenStates:
        folder = self._out / "work"
        folder.mkdir(parents=True, exist_ok=True)
        return compute_states(
            backbone, samples, depths, folder, task.bundle.tokenizer.pad_id, self._device, self._precision
        )

    def _student(self, run: Run, task: _Prepared) -> tuple[Backbone, float]:
        """The student with the run's layers, trained once for all runs that name it with the same data and seed."""
        assert run.layers is not None
        settings = Run(
            task=run.task,
            method=STUDENT,
            layers=run.layers,
            seed=run.seed,
            epochs=run.epochs,
            join_rounds=run.join_rounds,
            ce=run.ce,
            kl=run.kl,
            infonce=run.infonce,
        )
        if settings.key not in task.students:
            samples, labels = self._text(run, task)
            teacher = self._teacher_states(run, task)
            schedule = replace(_schedule(settings), learning_rate=_STUDENT_LEARNING_RATE)
            model, seconds = train_student(
                task.bundle.classifier.backbone,
                run.layers,
                samples,
                teacher.logits,
                teacher.pooled,
                labels,
                _losses(settings),
                schedule,
                self._out / "work" / settings.key,
                task.bundle.tokenizer.pad_id,
                run.seed,
                self._device,
                self._precision,
            )
            task.students[settings.key] = view(model), seconds
        return task.students[settings.key]


def _speedup(run: Run, task: _Prepared, classifier: MuxClassifier, point: OperatingPoint) -> float:
    """The engine's speed-up over the plain path. What a run learnt does not change it, so seeds and losses share one
    measurement."""
    key = (run.method, point, run.layers, run.int8, bool(run.delta_rank))
    if key not in task.speedups:
        own = partial(run_all, classifier, task.eval_samples, point, task.bundle.tokenizer.pad_id, BATCH_TOKENS)
        task.speedups[key] = speedup_over(partial(_run_plain, task), own, _ROUNDS)
    return task.speedups[key]


def _measure_cascade(
    run: Run, task: _Prepared, classifier: MuxClassifier, points: Sequence[OperatingPoint]
) -> dict[str, Any]:
    """Figures of a cascade whose threshold for either half of the held-out text the other half set."""
    assert run.speedup is not None
    pad_id = task.bundle.tokenizer.pad_id
    num_layers = classifier.backbone.num_layers
    samples = task.eval_samples
    problem = classifier.backbone.problem
    logits = [run_all(classifier, samples, point, pad_id, BATCH_TOKENS)[0] for point in points]
    confidences = np.stack([problem.confidence(own).numpy() for own in logits], axis=1)
    halves = [range(0, len(samples), 2), range(1, len(samples), 2)]
    cascades = [
        cascade_at_speed(tuple(points), num_layers, confidences[other], run.speedup) for other in reversed(halves)
    ]

    labels = np.empty(len(samples), dtype=np.int64)
    left_at = np.empty(len(samples), dtype=np.int64)
    for half, cascade in zip(halves, cascades, strict=True):
        own, steps = run_cascade(classifier, [samples[i] for i in half], cascade, pad_id, BATCH_TOKENS)
        labels[list(half)] = problem.decide(own.numpy())
        left_at[list(half)] = steps
    # Timed over all of the text at once, as everything else is: half as many samples make smaller batches.
    timed = partial(run_cascade, classifier, samples, cascades[0], pad_id, BATCH_TOKENS)
    agreement = float((labels == task.reference).mean())
    accuracy = float((labels == task.eval_labels).mean())
    return {
        "point": " ".join(point.name for point in points),
        "accuracy": accuracy,
        "accuracy_worst": accuracy,
        "agreement": agreement,
        "agreement_worst": agreement,
        "agreement_without_composite": None,
        "partner_sensitivity": 0.0,
        "samples": len(samples),
        "draws": 1,
        "escalated": float((left_at == len(points)).mean()),
        "thresholds": [cascade.thresholds[0] for cascade in cascades],
        "speedup": speedup_over(partial(_run_plain, task), timed, _ROUNDS),
        "ideal_speedup": cascades[0].ideal_speedup(left_at),
    }


def _run_plain(task: _Prepared) -> None:
    plain = task.bundle.classifier
    run_all(plain, task.eval_samples, plain.plain, task.bundle.tokenizer.pad_id, BATCH_TOKENS)


def _points(run: Run, num_layers: int) -> list[OperatingPoint]:
    """What the run trains adapters for, in the order of a cascade's steps."""
    if run.method in (PLAIN, STUDENT, INT8):
        return []
    if run.method == CASCADE:
        assert run.exits is not None
        return [OperatingPoint(1, depth, ()) for depth in run.exits]
    prefill = num_layers // 2 if run.prefill is None else run.prefill
    if run.method == EARLY_EXIT:
        return [OperatingPoint(1, prefill, ())]
    if run.upper is None:
        return [OperatingPoint.mux(run.width, prefill, num_layers)]
    return [OperatingPoint(run.width, prefill, run.upper)]


def _losses(run: Run) -> LossWeights:
    return LossWeights(ce=run.ce, kl=run.kl, infonce=run.infonce)


def _schedule(run: Run) -> Schedule:
    return Schedule(run.epochs, run.learning_rate, run.batch_size)


def _in_int8(classifier: MuxClassifier) -> MuxClassifier:
    """The same with dynamically quantized linear maps of the backbone, PyTorch's own way to int8 on a CPU."""
    quantized = torch.ao.quantization.quantize_dynamic(classifier.frozen, {nn.Linear}, dtype=torch.qint8)
    adapters = {point: classifier.adapters_of(point) for point in classifier.points if point != classifier.plain}
    return MuxClassifier(view(quantized), adapters)
