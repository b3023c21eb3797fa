"""Writes what training made as a bundle, see `revmux_core.bundle` for what is in one."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig

from revmux_core.backbones.words import PROMPT
from revmux_core.base_model import sha256
from revmux_core.bundle import DELTAS
from revmux_core.classifier import Adapters
from revmux_core.manifest import (
    FORMAT_VERSION,
    PROMPT_FILE,
    TOKENIZER_FILES,
    BaseEntry,
    Manifest,
    PointEntry,
    write_manifest,
)
from revmux_core.multiplexing import method_of
from revmux_core.points import OperatingPoint
from revmux_core.problems import MultiLabel, Problem, Regression


def save_bundle(
    folder: Path,
    *,
    name: str,
    base: BaseEntry,
    problem: Problem,
    max_tokens: int,
    source: Path,
    task: PeftModel | None,
    adapters: Mapping[OperatingPoint, Adapters],
    num_layers: int,
    training: dict[str, Any],
    verbalizer: dict[str, int] | None = None,
    prompt: Tensor | None = None,
) -> Manifest:
    """Writes a bundle. `source` is the base model's folder, `task` its LoRA model where the task was tuned here,
    `verbalizer` the tokens of the labels' words where it is a language model, `prompt` its soft prompt `[P, d]`.

    Adapters are stored in float16: half the size, and far below the noise that partners add. What the bundle measured
    is added later, by `record_measurements`, on the weights as they are stored.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = AutoConfig.from_pretrained(source)
    config.save_pretrained(folder / "backbone")
    for file in TOKENIZER_FILES:
        (folder / "backbone" / file).write_bytes((source / file).read_bytes())
    files = ["backbone/config.json", *(f"backbone/{file}" for file in TOKENIZER_FILES)]
    if task is not None:
        save_task(task, folder / "task", base.model_id)
        files += ["task/adapter_config.json", "task/adapter_model.safetensors"]
    if prompt is not None:
        (folder / PROMPT_FILE).parent.mkdir(exist_ok=True)
        save_file({PROMPT: prompt.detach().to("cpu", torch.float32).contiguous()}, folder / PROMPT_FILE)
        files.append(PROMPT_FILE)
    entries = _save_adapters(folder, adapters)
    manifest = Manifest(
        name=name,
        base=base,
        labels=list(problem.labels),
        problem_type=problem.type,
        thresholds=list(problem.thresholds) if isinstance(problem, MultiLabel) else None,
        tolerance=problem.tolerance if isinstance(problem, Regression) else None,
        max_tokens=max_tokens,
        num_layers=num_layers,
        tuned=task is not None,
        verbalizer=verbalizer,
        prompt_tokens=0 if prompt is None else len(prompt),
        adapters=entries,
        training=training,
        files=_hashed(folder, [*files, *(entry.file for entry in entries)]),
    )
    write_manifest(folder, manifest)
    return manifest


def save_extended(
    folder: Path,
    *,
    name: str,
    source: Path,
    manifest: Manifest,
    kept: Collection[OperatingPoint],
    adapters: Mapping[OperatingPoint, Adapters],
    training: dict[str, Any],
) -> Manifest:
    """Writes a bundle of the same model as that in the folder `source`, whose `manifest` is given: with those of its
    points that are `kept`, bit for bit, and with `adapters` of others.

    So is what is certified of cascades of points that are kept, whose answers are the same. What was measured is left
    behind, as it is about the bundle as a whole.
    """
    names = [point.name for point in kept]
    calibrations = [one for calibration in manifest.calibrations if (one := calibration.of(names)).cascades]
    left = {entry.file for entry in manifest.adapters if entry.point not in kept}
    left |= {file for calibration in manifest.calibrations for file in calibration.files.values()}
    left -= {file for calibration in calibrations for file in calibration.files.values()}
    files = [file for file in manifest.files if file not in left]
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes((source / file).read_bytes())
    new = _save_adapters(folder, adapters)
    entries = [*(entry for entry in manifest.adapters if entry.point in kept), *new]
    extended = manifest.model_copy(
        update={
            "format_version": FORMAT_VERSION,
            "name": name,
            "adapters": sorted(entries, key=lambda entry: entry.point),
            "training": training,
            "measured": {},
            "calibrations": calibrations,
            "files": _hashed(folder, [*files, *(entry.file for entry in new)]),
        }
    )
    write_manifest(folder, extended)
    return extended


def _save_adapters(folder: Path, adapters: Mapping[OperatingPoint, Adapters]) -> list[PointEntry]:
    (folder / "adapters").mkdir(parents=True, exist_ok=True)
    entries = []
    for point, adapter in sorted(adapters.items()):
        file = f"adapters/{point.name}.safetensors"
        tensors, rank = adapter.multiplexer.state_dict(), 0
        if adapter.deltas is not None:
            rank = adapter.deltas.rank
            tensors |= {DELTAS + name: tensor for name, tensor in adapter.deltas.updates().items()}
        half = {name: tensor.detach().to("cpu", torch.float16).contiguous() for name, tensor in tensors.items()}
        save_file(half, folder / file)
        entries.append(
            PointEntry(
                width=point.width,
                prefill=point.prefill,
                upper=point.upper,
                method=method_of(adapter.multiplexer),
                delta_rank=rank,
                file=file,
            )
        )
    return entries


def _hashed(folder: Path, files: Iterable[str]) -> dict[str, str]:
    """SHA-256 by file, of files that anyone may read."""
    for file in files:
        # Some writers make files that their owner alone can read, and a server often runs as another user.
        (folder / file).chmod(0o644)
    return {file: sha256(folder / file) for file in files}


def save_task(task: PeftModel, folder: Path, model_id: str) -> None:
    """Writes the task's LoRA updates and head, in float16 as the adapters."""
    # PEFT would record the local path that the base was loaded from.
    task.peft_config["default"].base_model_name_or_path = model_id
    half = {name: value.half() if value.is_floating_point() else value for name, value in task.state_dict().items()}
    task.save_pretrained(str(folder), state_dict=half, safe_serialization=True, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
