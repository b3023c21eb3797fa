"""What an experiment is: tasks, and the runs that its grids span. Pure: reads no data and trains nothing."""

from __future__ import annotations

import hashlib
from itertools import product
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from revmux_core.errors import RevmuxError

PLAIN, STUDENT, INT8, CASCADE = "plain", "pruned-student", "int8", "cascade"
"""Contenders that do not multiplex: the untouched model; a student with fewer layers, distilled from it; the plain
model, or the student that `layers` names, with its linear maps in int8; early exits that pass on what they are not sure
of, to the plain path in the end."""


class ExperimentError(RevmuxError):
    """An experiment file that cannot be run; the message says what to change."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Task(_Strict):
    """Where a task's text is, relative to the data folder, and which plain model answers it.

    Without `eval`, every `holdout`-th sample of `train` is held out. `train_samples` keeps that many of the others,
    evenly spread. `bundle` takes that bundle's plain model;
    otherwise `model` is tuned on the task first.
    """

    train: str
    eval: str | None = None
    holdout: int = Field(5, ge=2)
    train_samples: int | None = Field(None, ge=1)
    text_column: str | None = None
    pair_column: str | None = None
    label_column: str | None = None
    labels: tuple[str, ...] = ()
    bundle: str | None = None
    task_epochs: float = 2
    task_learning_rate: float = 6e-5


class Run(_Strict):
    """One contender, trained once. `upper` None is every layer from `prefill` up; `layers` prunes the backbone first
    to a distilled student with these layers, and `int8` quantizes the linear maps of its layers after training, so that
    methods compound with either.

    A cascade has exits after `exits` layers. Every half of the held-out text is answered with the threshold that gave
    the other half the ideal `speedup`.
    """

    task: str
    method: str
    width: int = 1
    prefill: int | None = None
    upper: tuple[int, ...] | None = None
    layers: tuple[int, ...] | None = None
    int8: bool | None = None
    exits: tuple[int, ...] | None = None
    speedup: float | None = None
    delta_rank: int = 0
    seed: int = 0
    epochs: float = 2
    learning_rate: float = 7e-4
    batch_size: int = 64
    ce: float = 1.0
    kl: float = 1.0
    infonce: float = 0.25
    join_rounds: int = 0

    @model_validator(mode="after")
    def _cascade_is_whole(self) -> Self:
        given = {self.exits is not None, self.speedup is not None, self.method == CASCADE}
        if len(given) > 1 or self.exits == ():
            raise ValueError(f"`exits` and `speedup` belong to the method {CASCADE}, which needs both")
        return self

    @property
    def key(self) -> str:
        """A file name: what is varied most, and a hash of all settings."""
        # Without what is not set, so that a new field does not make old results strangers.
        digest = hashlib.sha256(self.model_dump_json(exclude_none=True).encode()).hexdigest()[:10]
        return f"{self.task}-{self.method}-n{self.width}-s{self.seed}-{digest}"

    @property
    def contender(self) -> Run:
        """The run without its seed: what is averaged over."""
        return self.model_copy(update={"seed": 0})


class Experiment(_Strict):
    """The contents of an experiment file.

    `runs` is a list of grids: every key is a field of `Run`, every list in one an axis, and the runs are all
    combinations. `defaults` fills in what a grid leaves out.
    """

    name: str
    title: str
    model: str
    tasks: dict[str, Task]
    defaults: dict[str, Any] = {}
    runs: list[dict[str, Any]]
    draws: int = Field(10, ge=1)

    @model_validator(mode="after")
    def _tasks_exist(self) -> Self:
        for run in self.expand():
            if run.task not in self.tasks:
                raise ValueError(f"a run names the task {run.task}, which is none of {', '.join(self.tasks)}")
        return self

    def expand(self) -> list[Run]:
        """All runs, each once, in the order of the file. Raises `ValidationError` for a field that `Run` lacks."""
        runs = {}
        for grid in self.runs:
            axes = [value if isinstance(value, list) else [value] for value in (self.defaults | grid).values()]
            for values in product(*axes):
                run = Run.model_validate(dict(zip((self.defaults | grid).keys(), values, strict=True)))
                runs[run.key] = run
        return list(runs.values())


def read_experiment(path: Path) -> Experiment:
    """Raises `ExperimentError` for a file that is missing, not YAML, or does not describe an experiment."""
    try:
        import yaml
    except ImportError as error:
        raise ExperimentError("experiments need PyYAML: pip install 'revmux-server[train]'") from error
    try:
        return Experiment.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ExperimentError(f"{path} cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ExperimentError(f"{path} is not YAML: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise ExperimentError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
