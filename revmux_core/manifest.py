"""A bundle's manifest: what is in its folder, what it measured, and the hashes that keep it honest."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Self

import torch
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator
from safetensors.torch import save_file
from torch import Tensor

from revmux_core.backends import BackendName
from revmux_core.base_model import sha256
from revmux_core.cascade import Cascade
from revmux_core.confidence import LEARNT, TOP_PROBABILITY, ScoreKind
from revmux_core.errors import RevmuxError
from revmux_core.multiplexing import DEFAULT_METHOD, METHODS
from revmux_core.points import OperatingPoint
from revmux_core.problems import Problem, ProblemType, make_problem

FORMAT_VERSION = 5
"""Version 1 had at most one calibration, made by PyTorch in float32; until version 2 all answers were single labels;
until version 4 a cascade had one threshold."""
MANIFEST = "bundle.json"
BUILT_IN = Path(__file__).parent / "bundles"
PROMPT_FILE = "task/prompt.safetensors"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


_LONGEST_MESSAGE = 500


class BundleError(RevmuxError):
    """A bundle that cannot be served; the message is one line that says why.

    What a library or a malformed file put into it over several lines, or at length, is joined and cut.
    """

    def __init__(self, message: str) -> None:
        line = " ".join(message.split())
        super().__init__(line if len(line) <= _LONGEST_MESSAGE else f"{line[:_LONGEST_MESSAGE]} ...")


class BaseEntry(BaseModel):
    """The frozen base model: its name, and the SHA-256 of its weights."""

    model_id: str
    sha256: str


class PointEntry(BaseModel):
    """One operating point beside the plain one, and the file that holds its adapters."""

    width: int
    prefill: int
    upper: tuple[int, ...]
    method: str = DEFAULT_METHOD
    delta_rank: int = Field(0, ge=0)
    file: str

    @property
    def point(self) -> OperatingPoint:
        return OperatingPoint(self.width, self.prefill, self.upper)

    @field_validator("method")
    @classmethod
    def _known(cls, method: str) -> str:
        if method not in METHODS:
            raise ValueError(f"{method} is none of {', '.join(METHODS)}")
        return method


class _OneThreshold(BaseModel):
    """What a cascade had in place of `thresholds` until version 4: one, in version 4 of log-odds that were divided by a
    temperature for each point where it has `temperatures`."""

    points: tuple[str, ...]
    threshold: float
    temperatures: tuple[float, ...] = ()

    @property
    def thresholds(self) -> tuple[float, ...]:
        if not self.temperatures:
            return (self.threshold,) * len(self.points)
        odds = torch.tensor(self.threshold, dtype=torch.double).logit()
        return tuple((odds * torch.tensor(self.temperatures)).sigmoid().tolist())


class CascadeEntry(BaseModel):
    """A certified cascade: from which of the `thresholds` on each of its `points` answers, and what that came to on the
    texts that certified it. `certified_agreement` is the lower confidence bound; `score` says what a point's
    confidence is; `passed_on` is the share that each point passed on of what came to it, which calibrations of before
    version 4 lack."""

    width: int
    points: tuple[str, ...]
    score: ScoreKind
    thresholds: tuple[Annotated[float, Field(allow_inf_nan=False)], ...]
    escalation_rate: float
    passed_on: tuple[Annotated[float, Field(ge=0, le=1)], ...] | None = None
    agreement: float
    certified_agreement: float
    ideal_speedup: float

    @model_validator(mode="before")
    @classmethod
    def _from_version_4(cls, content: Any) -> Any:
        if not isinstance(content, dict) or "threshold" not in content:
            return content
        rest = {key: value for key, value in content.items() if key not in ("threshold", "temperatures")}
        if rest.get("score") == "tempered-probability":
            rest["score"] = TOP_PROBABILITY
        return rest | {"thresholds": _OneThreshold.model_validate(content).thresholds}

    @model_validator(mode="after")
    def _one_for_each_point(self) -> Self:
        if self.passed_on is not None and len(self.passed_on) != len(self.points):
            raise ValueError(f"a cascade of {len(self.points)} points says what {len(self.passed_on)} passed on")
        return self

    @property
    def expected_on(self) -> tuple[float, ...]:
        """The share that each point is expected to pass on: as much as the others where only what all of them passed on
        is known."""
        if self.passed_on is not None:
            return self.passed_on
        steps = len(self.points)
        return (self.escalation_rate ** (1 / steps),) * steps


class Calibration(BaseModel):
    """What is promised: answers of any one of `cascades` differ from the plain model's on at most a share of
    1 - `target` of texts like the `samples` of `data`, with the statistical `confidence` for all together.

    The plain model is PyTorch's, in float32; the answers are those of `backend` in `precision`, and so are the plain
    ones that escalation ends with.
    """

    backend: BackendName = "torch"
    precision: str = "float32"
    target: float
    confidence: float
    data: str
    samples: int
    seed: int
    cascades: list[CascadeEntry]

    @property
    def files(self) -> dict[str, str]:
        """Where the learnt score of a point is, by the point's name."""
        names = [name for entry in self.cascades if entry.score == LEARNT for name in entry.points]
        folder = f"calibration/{self.backend}-{self.precision}"
        return {name: f"{folder}/{name}.safetensors" for name in names}

    def of(self, points: Collection[str]) -> Self:
        """What this promises of cascades of no other than these points."""
        return self.model_copy(update={"cascades": [entry for entry in self.cascades if {*entry.points} <= {*points}]})


class Manifest(BaseModel):
    """The contents of `bundle.json`. `files` maps every other loaded file to its SHA-256.

    `problem_type` says what is answered, `thresholds` from which probability on a text has each of several labels,
    `tolerance` how far a score may be from the plain model's and agree.
    `verbalizer` has the token of every label's word where the base is a language model, `prompt_tokens` the length of
    the soft prompt in front of every text.
    """

    format_version: int = FORMAT_VERSION
    name: str
    base: BaseEntry
    labels: list[str]
    problem_type: ProblemType = "single_label_classification"
    thresholds: list[float] | None = None
    tolerance: float | None = None
    max_tokens: int
    num_layers: int
    tuned: bool
    verbalizer: dict[str, int] | None = None
    prompt_tokens: int = 0
    adapters: list[PointEntry]
    training: dict[str, Any]
    measured: dict[str, Any] = {}
    calibrations: list[Calibration] = []
    files: dict[str, str] = {}

    @model_validator(mode="before")
    @classmethod
    def _from_version_1(cls, content: Any) -> Any:
        if isinstance(content, dict) and content.get("format_version") == 1 and "calibration" in content:
            rest = {key: value for key, value in content.items() if key != "calibration"}
            old = content["calibration"]
            return rest | {"format_version": FORMAT_VERSION, "calibrations": [] if old is None else [old]}
        return content

    @model_validator(mode="after")
    def _fits(self) -> Manifest:
        own = {entry.point for entry in self.adapters}
        try:
            _ = self.problem
            for entry in (entry for calibration in self.calibrations for entry in calibration.cascades):
                points = tuple(map(OperatingPoint.parse, entry.points))
                Cascade(points, entry.thresholds, self.num_layers)
                for point in points:
                    if point not in own:
                        raise BundleError(f"a cascade has the point {point.name}, which has no adapters")
        except RevmuxError as error:
            raise ValueError(str(error)) from None
        return self

    @property
    def problem(self) -> Problem:
        """What the bundle answers."""
        return make_problem(self.problem_type, self.labels, self.thresholds, self.tolerance)

    @property
    def points(self) -> list[OperatingPoint]:
        """All points but the plain one."""
        return [entry.point for entry in self.adapters]

    @property
    def calibration(self) -> Calibration | None:
        """The calibration of a manifest that was narrowed to one way of running it (`run_by`)."""
        return self.calibrations[0] if self.calibrations else None

    @property
    def cascades(self) -> list[CascadeEntry]:
        """Its certified cascades; none where the bundle is not calibrated."""
        return [] if self.calibration is None else self.calibration.cascades

    def run_by(self, backend: BackendName, precision: str) -> Manifest:
        """The manifest with no other calibration than that of this backend and precision."""
        own = [one for one in self.calibrations if (one.backend, one.precision) == (backend, precision)]
        return self.model_copy(update={"calibrations": own})

    @property
    def measured_agreement(self) -> dict[str, float]:
        """By point name, what `record_measurements` stored; empty for a bundle that was not measured."""
        return {row["point"]: row["agreement"] for row in self.measured.get("points", [])}


def resolve_bundle(name_or_path: str | Path) -> Path:
    """The folder of a bundle, by path or built-in name. Raises `BundleError` when there is none."""
    folder = Path(name_or_path)
    if folder.is_dir():
        return folder
    built_in = BUILT_IN / str(name_or_path)
    if folder.name == str(name_or_path) and built_in.is_dir():
        return built_in
    known = ", ".join(sorted(path.parent.name for path in BUILT_IN.glob(f"*/{MANIFEST}")))
    raise BundleError(f"there is no bundle {name_or_path}: name a folder or a built-in bundle ({known or 'none'})")


def is_bundle(name_or_path: str | Path) -> bool:
    """Whether this is a bundle's folder or the name of a built-in one, damaged or not."""
    try:
        return (resolve_bundle(name_or_path) / MANIFEST).is_file()
    except BundleError:
        return False


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a bundle folder. Raises `BundleError` when it is missing, damaged or too new."""
    path = folder / MANIFEST
    if not path.is_file():
        # Reading a pipe would wait for ever.
        raise BundleError(f"{folder} is not a bundle: it has no file {MANIFEST}")
    try:
        content = json.loads(path.read_bytes())
        # Raises `ValueError` for half a character, which JSON can spell and no answer could be written with.
        json.dumps(content, ensure_ascii=False).encode()
        digest = content.pop("digest", None) if isinstance(content, dict) else None
        # Of the contents as they stand there: a bundle that an older version wrote may lack fields of this one.
        altered = digest != digest_of(content)
    except OSError as error:
        raise BundleError(f"{folder} is not a bundle: {MANIFEST} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is truncated or not JSON: {error}") from error
    version = content.get("format_version") if isinstance(content, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise BundleError(
            f"{folder} has bundle format {version}, newer than {FORMAT_VERSION}, the newest known here: "
            "upgrade revmux-server"
        )
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise BundleError(f"{path} is not a valid manifest: {where}: {first['msg']}") from error
    if altered:
        raise BundleError(f"{path} was altered after it was saved: its digest does not match")
    return manifest


def record_measurements(folder: Path, measured: dict[str, Any]) -> Manifest:
    """Stores what was measured on the saved bundle in its manifest and returns that."""
    manifest = read_manifest(folder).model_copy(update={"measured": measured})
    write_manifest(folder, manifest)
    return manifest


def record_calibration(folder: Path, calibration: Calibration, learnt: Mapping[str, dict[str, Tensor]]) -> Manifest:
    """Stores a calibration, with the weights of its `learnt` scores by the names of their points, in place of any
    earlier one of the same backend and precision."""
    manifest = read_manifest(folder)
    files = dict(manifest.files)
    replaced = manifest.run_by(calibration.backend, calibration.precision).calibrations
    stale = {file for earlier in replaced for file in earlier.files.values()}
    for file in stale:
        del files[file]
    with _replacing(folder) as draft:
        for name, tensors in learnt.items():
            file = calibration.files[name]
            partial = draft(file)
            save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, partial)
            partial.chmod(0o644)
            files[file] = sha256(partial)
        calibrations = [one for one in manifest.calibrations if one not in replaced] + [calibration]
        changed = {"format_version": FORMAT_VERSION, "calibrations": calibrations, "files": files}
        manifest = manifest.model_copy(update=changed)
        _write(draft(MANIFEST), manifest)
    for file in stale - files.keys():
        (folder / file).unlink()
    return manifest


def check_files(folder: Path, manifest: Manifest) -> None:
    """Raises `BundleError` for a file that is missing, altered, or outside the bundle's folder."""
    named = {entry.file for entry in manifest.adapters} | {f"backbone/{file}" for file in TOKENIZER_FILES}
    named |= {"backbone/config.json"}
    for calibration in manifest.calibrations:
        named |= set(calibration.files.values())
    if manifest.tuned:
        named |= {"task/adapter_config.json", "task/adapter_model.safetensors"}
    if manifest.prompt_tokens:
        named.add(PROMPT_FILE)
    for file in sorted(named | manifest.files.keys()):
        path = folder / file
        try:
            inside = path.resolve().is_relative_to(folder.resolve())
            digest = sha256(path) if inside and path.is_file() else None
        except (OSError, RuntimeError, ValueError) as error:
            # A name that no file can have, a loop of links, a file that may not be read.
            raise BundleError(f"bundle {manifest.name} names {file!r}, which cannot be read: {error}") from error
        if not inside:
            raise BundleError(f"bundle {manifest.name} names {file}, which is outside its folder")
        if digest is None:
            raise BundleError(f"bundle {manifest.name} is incomplete: {file} is missing")
        if digest != manifest.files.get(file):
            raise BundleError(f"bundle {manifest.name} is damaged: {file} does not match its SHA-256")


def digest_of(content: object) -> str:
    """SHA-256 of the manifest itself, so that a changed label or hash is noticed too."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes `bundle.json` with its digest; a kill or a full disk while it does leaves the one before."""
    with _replacing(folder) as draft:
        _write(draft(MANIFEST), manifest)


def _write(path: Path, manifest: Manifest) -> None:
    content = manifest.model_dump(mode="json")
    content["digest"] = digest_of(content)
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def _replacing(folder: Path) -> Iterator[Callable[[str], Path]]:
    """Where to write files of `folder`, each by its name in there. Once all are whole they take their places, in the
    order in which they were asked for; where one cannot be written, none does."""
    drafts: dict[Path, Path] = {}

    def draft(file: str) -> Path:
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        return drafts.setdefault(path, path.with_name(f"{path.name}.partial"))

    try:
        yield draft
    except BaseException:
        for partial in drafts.values():
            partial.unlink(missing_ok=True)
        raise
    for path, partial in drafts.items():
        os.replace(partial, path)
