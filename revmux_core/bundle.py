"""A bundle: everything that serving needs beside the frozen base weights, in one folder of safetensors and JSON.

bundle.json                  the manifest: names, labels, points, how it was trained, what it measured, all hashes
backbone/                    configuration and tokenizer of the base model
task/                        LoRA weights and head (PEFT's own format), or a soft prompt, where the task was tuned here
adapters/POINT.safetensors   the adapters of one operating point
calibration/BACKEND-PRECISION/POINT.safetensors  how sure a point is of an answer, where that was learnt
README.md                    the model card, written from the manifest
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from revmux_core.backbones import Backbone, view
from revmux_core.backbones.base import set_problem
from revmux_core.backbones.words import LABEL_WORDS, PROMPT, prompt_ids, set_prompt
from revmux_core.backends import BackendName
from revmux_core.backends.select import use_backend
from revmux_core.base_model import BaseModelError, find_base, sha256
from revmux_core.cascade import Cascade, Quality
from revmux_core.classifier import Adapters, MuxClassifier, make_adapters
from revmux_core.confidence import LearntConfidence
from revmux_core.errors import RevmuxError
from revmux_core.manifest import (
    PROMPT_FILE,
    BundleError,
    Manifest,
    PointEntry,
    check_files,
    read_manifest,
    resolve_bundle,
)
from revmux_core.multiplexing import load_multiplexer
from revmux_core.offline import BATCH_TOKENS, Prediction, run_all, run_cascade
from revmux_core.points import MIN_AGREEMENT, OperatingPoint
from revmux_core.problems import Problem
from revmux_core.tokenization import Tokenizer

logger = logging.getLogger(__name__)

# Names of the upper layers' updates in an adapter file begin with this.
DELTAS = "deltas."


@dataclass(frozen=True, slots=True)
class Bundle:
    """A loaded bundle, ready to classify. `manifest` has no other calibration than that of how it runs here."""

    manifest: Manifest
    classifier: MuxClassifier
    tokenizer: Tokenizer

    def point(self, choice: int | str | None = None) -> OperatingPoint:
        """An operating point by width or by name (`OperatingPoint.name`).

        Where nothing is named it is the cheapest that was measured to agree with the plain one at least `MIN_AGREEMENT`
        of the time. Of several points of one width it is the cheapest, but width 1 is always the plain one. Raises
        `RevmuxError` where the bundle has none such.
        """
        layers = self.classifier.backbone.num_layers
        by_cost = sorted(self.classifier.points, key=lambda point: point.ideal_cost(layers))
        plain = self.classifier.plain
        if choice is None:
            agreement = self.manifest.measured_agreement
            return next(p for p in by_cost if p == plain or agreement.get(p.name, 0.0) >= MIN_AGREEMENT)
        if choice == 1:
            return plain
        for point in by_cost:
            if choice in (point.width, point.name):
                return point
        widths = sorted({point.width for point in by_cost})
        names = ", ".join(point.name for point in by_cost)
        raise RevmuxError(f"bundle {self.manifest.name} has the widths {widths} and the points {names}, not {choice}")

    def cascade(self, width: int | None = None) -> Cascade:
        """The certified cascade of a mux width; without one, that with the highest ideal speed-up.

        Raises `RevmuxError` where the bundle has none.
        """
        cascades = self.cascades()
        chosen = [pair for pair in cascades if width in (None, pair[0].width)]
        if not chosen:
            calibrated = ", ".join(str(cascade.width) for cascade, _ in cascades) or "no width"
            raise RevmuxError(
                f"bundle {self.manifest.name} is calibrated at {calibrated}: run `revmux calibrate`, or ask for the "
                "quality exact or fast"
            )
        return max(chosen, key=lambda pair: pair[1])[0]

    def cascades(self) -> list[tuple[Cascade, float]]:
        """All certified cascades, each with the ideal speed-up that it had when it was certified."""
        layers = self.classifier.backbone.num_layers
        return [
            (Cascade(tuple(map(OperatingPoint.parse, entry.points)), entry.thresholds, layers), entry.ideal_speedup)
            for entry in self.manifest.cascades
        ]

    def classify(
        self, texts: Sequence[str | tuple[str, str]], point: int | str | None = None, quality: Quality | None = None
    ) -> list[Prediction]:
        """Answers texts, or pairs of texts, in order.

        `quality` is `exact` (plain), `guaranteed` (a certified cascade, of the mux width that `point` may name) or
        `fast` (at `point`, see there, and never escalated). Left out it is `fast` where `point` is given, else
        `guaranteed` where the bundle is calibrated, else `fast`.

        The same list gives the same answers again on the same machine. Raises `RevmuxError` for an unknown point, and
        for a guarantee that the bundle does not have.
        """
        if quality is None:
            quality = "guaranteed" if point is None and self.manifest.calibration is not None else "fast"
        if quality == "exact":
            point = 1
        if quality == "guaranteed" and isinstance(point, str):
            raise RevmuxError("quality guaranteed takes a width, not a point by its name")
        if not texts:
            return []
        items = [(text, None) if isinstance(text, str) else text for text in texts]
        samples = self.tokenizer(items)
        pad_id = self.tokenizer.pad_id
        if quality == "guaranteed" and not isinstance(point, str):
            cascade = self.cascade(point)
            logits, left_at = run_cascade(self.classifier, samples, cascade, pad_id, BATCH_TOKENS)
            widths = [*(step.width for step in cascade.points), 1]
            used = [(widths[step], step == len(cascade.points)) for step in left_at]
        else:
            logits, ran = run_all(self.classifier, samples, self.point(point), pad_id, BATCH_TOKENS)
            used = [(width, False) for width in ran]
        problem = self.classifier.backbone.problem
        raw = logits.numpy()
        probs = problem.activate(raw)
        predictions = []
        for row, ((text, _), sample, (width, escalated)) in enumerate(zip(items, samples, used, strict=True)):
            # Of a text's own words, where those are what is answered.
            own = row if sample.words is None else (row, slice(len(sample.words)))
            answer = problem.answer(raw[own].ravel().tolist(), probs[own].ravel().tolist(), text, sample)
            answer.pop("num_classes")
            predictions.append(
                Prediction(**{"label": None, "probs": [], **answer}, mux_width=width, escalated=escalated)
            )
        return predictions


def load_bundle(
    name_or_path: str | Path,
    base: str | Path | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    backend: BackendName = "torch",
    sharded: bool = False,
) -> Bundle:
    """Loads a bundle by folder, or by the name of a built-in one, and checks every hash.

    The base model is looked for at `base` (a folder), as `find_base` describes. `dtype` is the precision of the matrix
    products. Where it is `sharded` the base model is spread over all GPUs, of which `device` is the first.

    Raises `BundleError` for a bundle that is missing, truncated, altered or too new, or whose base cannot be found;
    `RevmuxError` where `backend` is not installed or does not run on this device.
    """
    # A link that is turned over meanwhile must not mix two bundles.
    folder = resolve_bundle(name_or_path).resolve()
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    try:
        found = find_base(manifest.base.model_id, base)
    except BaseModelError as error:
        raise BundleError(f"bundle {manifest.name}: {error}") from error
    if sha256(*found.weights) != manifest.base.sha256:
        raise BundleError(
            f"bundle {manifest.name} was trained on other weights than those in {found.folder}: their SHA-256 is not "
            f"{manifest.base.sha256}"
        )
    try:
        model = load_model(found.folder, folder / "backbone", manifest.problem, manifest.verbalizer)
        if manifest.tuned:
            with warnings.catch_warnings():
                # PEFT asks for what Transformers has renamed; whoever runs a server can do nothing about it.
                warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
                model = PeftModel.from_pretrained(model, str(folder / "task")).merge_and_unload()
        if manifest.prompt_tokens:
            set_prompt(model, load_file(folder / PROMPT_FILE)[PROMPT])
        backbone = view(model)
        adapters = {entry.point: _read_adapters(folder / entry.file, entry, backbone) for entry in manifest.adapters}
        prompt = prompt_ids(model, manifest.prompt_tokens)
        base_tokenizer = AutoTokenizer.from_pretrained(folder / "backbone", trust_remote_code=False)
        _check_tokens(manifest, backbone, base_tokenizer)
        tokenizer = Tokenizer(base_tokenizer, manifest.max_tokens, prompt, backbone.problem.by_word)
        classifier = MuxClassifier(backbone, adapters)
        use_backend(classifier, backend, torch.device(device), dtype, sharded)
        precision = classifier.executor.precision
        calibrated = manifest.calibrations
        manifest = manifest.run_by(backend, precision)
        if calibrated and not manifest.calibrations:
            logger.info(
                "bundle %s is not calibrated for the backend %s in %s, so nothing is guaranteed: run `revmux calibrate "
                "--backend %s`",
                manifest.name,
                backend,
                precision,
                backend,
            )
        if manifest.calibration is not None:
            for name, file in manifest.calibration.files.items():
                score = LearntConfidence(backbone.hidden_size, backbone.problem)
                score.load_state_dict(load_file(folder / file))
                score.to(next(classifier.parameters()))
                classifier.adapters_of(OperatingPoint.parse(name)).confidence = score
    except RevmuxError:
        raise
    except Exception as error:
        # Transformers, tokenizers, PEFT and torch raise whatever they come upon in a file that makes no sense to them.
        raise BundleError(f"bundle {manifest.name} cannot be loaded: {type(error).__name__}: {error}") from error
    return Bundle(manifest, classifier, tokenizer)


def load_model(
    weights: Path, config: Path, problem: Problem, verbalizer: Mapping[str, int] | None = None
) -> PreTrainedModel:
    """The model in float32 from the folder `weights`, shaped by the configuration in `config`.

    It is a classifier, of sequences or tokens as `problem` has it, or with a `verbalizer` a language model that has a
    word for every label. A head that the weights lack is initialised at random and must be tuned or loaded before use.
    Raises `ValueError` when anything else is missing, `KeyError` for a label without a word.
    """
    kind: Any = AutoModelForTokenClassification if problem.by_word else AutoModelForSequenceClassification
    # No bundle brings code: told nothing, Transformers would ask at the terminal whether to run it.
    settings = AutoConfig.from_pretrained(config, trust_remote_code=False)
    set_problem(settings, problem)
    if verbalizer is not None:
        setattr(settings, LABEL_WORDS, [verbalizer[label] for label in problem.labels])
        kind = AutoModelForSeq2SeqLM if settings.is_encoder_decoder else AutoModelForCausalLM
    with quiet_transformers():
        model, info = kind.from_pretrained(
            weights,
            config=settings,
            dtype=torch.float32,
            output_loading_info=True,
            use_safetensors=True,
            trust_remote_code=False,
        )
    heads = tuple(f"{name}." for name in view(model).head_modules)
    missing = sorted(key for key in info["missing_keys"] if not key.startswith(heads))
    if missing or info["mismatched_keys"]:
        raise ValueError(f"the weights in {weights} lack {', '.join(missing) or info['mismatched_keys']}")
    return model


def _check_tokens(manifest: Manifest, backbone: Backbone, tokenizer: Any) -> None:
    """Raises `BundleError` where texts can become tokens, or more of them, than the model has embeddings for."""
    if not 1 <= manifest.max_tokens <= backbone.max_tokens:
        raise BundleError(
            f"bundle {manifest.name} cannot be loaded: it takes texts of {manifest.max_tokens} tokens, and its model "
            f"1 to {backbone.max_tokens}"
        )
    table: Any = backbone.model.get_input_embeddings()
    known = table.num_embeddings
    last = max(tokenizer.get_vocab().values(), default=0)
    if last >= known:
        raise BundleError(
            f"bundle {manifest.name} cannot be loaded: its tokenizer makes the token {last}, its model knows {known}"
        )


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silences loading bars and reports: a head that the weights lack is expected here, and `load_model` checks."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        transformers_logging.enable_progress_bar()


def _read_adapters(path: Path, entry: PointEntry, backbone: Backbone) -> Adapters:
    tensors = load_file(path)
    updates = {name.removeprefix(DELTAS): tensors.pop(name) for name in list(tensors) if name.startswith(DELTAS)}
    multiplexer = load_multiplexer(entry.method, entry.width, backbone.hidden_size, tensors)
    adapters = make_adapters(backbone, entry.point, multiplexer, entry.delta_rank)
    if adapters.deltas is not None:
        adapters.deltas.load_updates(updates)
        adapters.deltas.merge()
    return adapters
