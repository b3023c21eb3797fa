"""A frozen model's layers on several devices, by accelerate's device map, where one GPU is too small for it.

Tested on a CPU, with layers that wait on disk for their turn; not measured on GPUs yet.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from accelerate import dispatch_model, infer_auto_device_map
from accelerate.utils import get_balanced_memory, get_max_memory
from torch import Tensor, nn

from revmux_core.backbones import Backbone
from revmux_core.errors import RevmuxError

logger = logging.getLogger(__name__)


def shard(backbone: Backbone, reserved: int = 0, memory: Mapping[int | str, int] | None = None) -> Backbone:
    """Spreads the model, which is on the CPU, over all GPUs; what they cannot hold waits in the CPU's memory or on
    disk, and is fetched whenever it runs.

    No layer is split. `memory` says how many bytes of a device, by a GPU's number, or as `cpu`, may be taken; left out
    it is what is free. On the first device `reserved` bytes of that are left for adapters. The model stays placed for
    good: it cannot be moved again.

    Raises `RevmuxError` where the first device does not hold the embeddings.
    """
    model: Any = backbone.model
    own = {type(layer).__name__ for layer in backbone.layers(0, backbone.num_layers)}
    # T5's decoder step is made of blocks of the encoder's kind.
    whole = sorted(own | {*(model._no_split_modules or [])})
    if memory is None:
        free = get_max_memory()
        # The model is there already.
        memory = {**free, "cpu": free["cpu"] + _bytes(model)}
    limits = get_balanced_memory(model, dict(memory), no_split_module_classes=whole)
    first = next(iter(limits))
    limits[first] = max(limits[first] - reserved, 0)
    places = infer_auto_device_map(model, limits, no_split_module_classes=whole)
    if _place_of(model, model.get_input_embeddings(), places) != first:
        raise RevmuxError("the first device is too small for the model's embeddings and adapters: use --device cpu")
    # Held by the model, which reads from it as long as it lives.
    folder = tempfile.TemporaryDirectory(prefix="revmux-")
    model.offload_folder = folder
    with warnings.catch_warnings():
        # accelerate wonders at a parameter outside all modules, as a soft prompt is, and places it well.
        warnings.filterwarnings("ignore", "The following device_map keys do not match")
        dispatch_model(model, places, offload_dir=folder.name)
    logger.info("layers are spread over %s", ", ".join(f"{name or 'all'} on {place}" for name, place in places.items()))
    return cast(Backbone, _Sharded(backbone, model.get_input_embeddings().weight.device))


def adapter_bytes(adapters: nn.Module, dtype: torch.dtype) -> int:
    """What `adapters` take in `dtype`."""
    return sum(parameter.numel() for parameter in adapters.parameters()) * dtype.itemsize


class _Sharded:
    """A backbone whose layers are on several devices, as it is on one.

    accelerate's hooks bring states, masks and positions to where a layer is. What comes out of the last one returns to
    the device of the embeddings, where masks, adapters and all else between layers are: two copies of the states for
    every run of neighbouring layers, beside all their matrix products.
    """

    def __init__(self, backbone: Backbone, main: torch.device) -> None:
        self._backbone = backbone
        self._main = main

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backbone, name)

    def embed(self, ids: Tensor, mask: Tensor, type_ids: Tensor | None) -> Tensor:
        return self._backbone.embed(ids, mask, type_ids).to(self._main)

    def run(self, hidden: Tensor, mask: Tensor, layers: Sequence[nn.Module]) -> Tensor:
        return self._backbone.run(hidden, mask, layers).to(self._main)

    def head(self, pooled: Tensor) -> Tensor:
        return self._backbone.head(pooled).to(self._main)


def _place_of(model: nn.Module, module: nn.Module, places: Mapping[str, Any]) -> Any:
    """Where a device map puts a module: what it says of the module, or of one that holds it; "" is the whole model."""
    (path,) = (name for name, own in model.named_modules() if own is module)
    return next(place for name, place in places.items() if not name or f"{path}.".startswith(f"{name}."))


def _bytes(model: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in model.parameters())
