"""A bundle's plain model as an ordinary Hugging Face folder, for other libraries and servers."""

from __future__ import annotations

import json
from pathlib import Path

from revmux_core.bundle import load_bundle, quiet_transformers
from revmux_core.errors import RevmuxError
from revmux_core.manifest import TOKENIZER_FILES, resolve_bundle


class ExportError(RevmuxError):
    """A folder that cannot be exported to."""


def export_plain(name_or_path: str | Path, folder: Path, base: Path | None = None) -> None:
    """Writes the untouched model that the plain path runs, task updates merged, in float32, with its tokenizer.

    The tokenizer's files are the bundle's own, so that older versions of transformers read them too, but without
    the padding and cutting that a base model may have set there (some pad every text to 128 tokens): who loads the
    folder pads as it likes, and texts are cut where the bundle cuts them.

    Raises `BundleError` for a bundle that cannot be loaded, `ExportError` for a folder that holds something already,
    and for a bundle with a soft prompt.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ExportError(f"{folder} is not an empty folder: name a new one")
    bundle = load_bundle(name_or_path, base)
    if bundle.manifest.prompt_tokens:
        raise ExportError(
            f"bundle {bundle.manifest.name} has a soft prompt, for which an ordinary folder of its family has no place"
        )
    with quiet_transformers():
        bundle.classifier.backbone.model.save_pretrained(folder)
    # It is written readable by its owner alone, and a server often runs as another user.
    (folder / "model.safetensors").chmod(0o644)
    source = resolve_bundle(name_or_path) / "backbone"
    settings = {
        "tokenizer.json": {"truncation": None, "padding": None},
        "tokenizer_config.json": {"model_max_length": bundle.manifest.max_tokens},
    }
    for file in TOKENIZER_FILES:
        content = json.loads((source / file).read_text(encoding="utf-8")) | settings[file]
        (folder / file).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
