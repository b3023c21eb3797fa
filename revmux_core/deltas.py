"""Low-rank updates of the upper layers that act in multiplexed mode only; the frozen layers stay as they are."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from peft import LoraConfig, LoraModel
from torch import Tensor, nn


class DeltaLayers(nn.Module):
    """Copies of frozen layers with LoRA updates (Hu et al. 2021, arXiv 2106.09685) on all their linear maps.

    Trainable as long as `merge` was not called; after it, plain layers that cost what the frozen ones cost.
    """

    def __init__(self, layers: Sequence[nn.Module], rank: int) -> None:
        super().__init__()
        self.rank = rank
        self.layers = nn.ModuleList(copy.deepcopy(layer) for layer in layers)
        linear = [name for name, module in self.layers.named_modules() if isinstance(module, nn.Linear)]
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=linear)
        # Exchanges the linear maps inside `self.layers`; the wrapper itself is needed for merging only.
        self._lora = [LoraModel(self.layers, {"default": config}, "default")]

    def updates(self) -> dict[str, Tensor]:
        """The trained tensors by name: all that a bundle has to keep."""
        return {name: tensor for name, tensor in self.layers.state_dict().items() if ".lora_" in name}

    def load_updates(self, tensors: Mapping[str, Tensor]) -> None:
        """Raises `KeyError` or `RuntimeError` where the tensors are not those of `updates`."""
        own = self.layers.state_dict()
        for name in self.updates():
            if tensors[name].shape != own[name].shape:
                raise RuntimeError(f"{name} has shape {list(tensors[name].shape)}, not {list(own[name].shape)}")
            own[name].copy_(tensors[name])

    @torch.no_grad()
    def merge(self) -> None:
        """Adds the updates to the copies' weights and drops them."""
        (lora,) = self._lora
        merged = lora.merge_and_unload()
        assert isinstance(merged, nn.ModuleList)
        self.layers = merged.requires_grad_(False)
        self._lora = []
