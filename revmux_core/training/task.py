"""Tunes a bare model on a labelled task, then keeps what it learnt as low-rank updates, before it is frozen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from revmux_core.backbones import view
from revmux_core.backbones.base import freeze
from revmux_core.batch import Words, pad
from revmux_core.plan import Tokens
from revmux_core.problems import is_labelled
from revmux_core.tokenization import Tokenizer
from revmux_core.training.loop import Schedule, train_loop
from revmux_core.training.losses import labelled_loss

# Share of the input tokens hidden in tuning, as in pre-training (Devlin et al. 2018): small encoders otherwise learn
# a task's training texts by heart.
_MASKED = 0.1

# The word embeddings' update needs a smaller rank than the layers': 4 of 384 directions carried nearly all of it.
_EMBEDDING_SHARE = 4


def tune(
    load: Callable[[], PreTrainedModel],
    samples: Sequence[Tokens],
    targets: np.ndarray,
    schedule: Schedule,
    rank: int,
    folder: Path,
    tokenizer: Tokenizer,
    seed: int,
    device: torch.device,
    precision: str,
) -> tuple[PeftModel, float]:
    """Tunes word embeddings, the layers' linear maps and the head in full, then cuts every update to `rank`.

    `targets` are what labels say (`Problem.targets`); samples that have none are left out. The cut (a quarter of the
    rank for the embeddings) is the nearest one by singular values, in the form of LoRA (Hu et al. 2021, arXiv
    2106.09685); `docs/performance/training.md` compares it with LoRA from the start. `load` makes the untuned model,
    with a head initialised at random, whose bias then begins at `Problem.prior`.

    Returns the model with its low-rank updates still apart, and the seconds it took. Raises `UnsupportedModelError` as
    `view` does.
    """
    torch.manual_seed(seed)
    tuned = _on(load(), device)
    backbone = view(tuned)
    freeze(tuned)
    for name in backbone.lora_targets:
        _weight(tuned, name).requires_grad_(True)
    for name in backbone.head_modules:
        tuned.get_submodule(name).requires_grad_(True)
    prior = backbone.problem.prior(targets)
    if prior is not None:
        _set_bias(tuned, backbone.head_modules, torch.from_numpy(prior))
    labelled = np.flatnonzero(is_labelled(targets).reshape(len(targets), -1).any(axis=1)).tolist()
    truth = torch.from_numpy(targets)
    special = torch.tensor(tokenizer.special_ids)

    def loss_function(positions: list[int]) -> tuple[Tensor, dict[str, float]]:
        indices = [labelled[position] for position in positions]
        ids, mask, type_ids = pad([samples[i] for i in indices], tokenizer.pad_id, backbone.padding_side)
        if tokenizer.mask_id is not None:
            hidden = (torch.rand(ids.shape) < _MASKED) & ~torch.isin(ids, special)
            ids = ids.masked_fill(hidden, tokenizer.mask_id)
        ids, mask = ids.to(device), mask.to(device)
        hidden = backbone.embed(ids, mask, None if type_ids is None else type_ids.to(device))
        hidden = backbone.run(hidden, mask, backbone.layers(0, backbone.num_layers))
        state, expected = backbone.pool(hidden, torch.arange(len(ids), device=device), mask), truth[indices]
        if backbone.problem.by_word:
            words = Words.of([samples[i].words or [] for i in indices])
            state, expected = words.to(device).read(state), expected[words.samples, words.nth]
        return labelled_loss(backbone.problem, backbone.head(state).float(), expected.to(device)), {}

    trained = {key: value for key, value in tuned.train().named_parameters() if value.requires_grad}
    lengths = [len(samples[i]) for i in labelled]
    seconds = train_loop("task", trained, loss_function, lengths, schedule, folder, seed, device, precision)
    freeze(tuned)
    return low_rank(_on(load(), device), tuned, rank), seconds


def low_rank(model: PreTrainedModel, tuned: PreTrainedModel, rank: int) -> PeftModel:
    """`model` with LoRA updates that are the nearest of `rank` to what `tuned` changed, and with its head.

    Only the LoRA targets and the head may differ between the two. `model` itself is wrapped.
    """
    backbone = view(model)
    ranks = {
        name: max(1, rank // _EMBEDDING_SHARE) if isinstance(model.get_submodule(name), nn.Embedding) else rank
        for name in backbone.lora_targets
    }
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        rank_pattern=ranks,
        alpha_pattern=ranks,
        target_modules=backbone.lora_targets,
        modules_to_save=backbone.head_modules,
    )
    cut: Any = get_peft_model(model, config)
    for name, kept in ranks.items():
        layer = cut.base_model.model.get_submodule(name)
        change = _weight(tuned, name) - layer.base_layer.weight
        left, values, right = torch.linalg.svd(change.double(), full_matrices=False)
        root = values[:kept].sqrt()
        down, up = root[:, None] * right[:kept], left[:, :kept] * root
        if isinstance(layer.base_layer, nn.Embedding):
            # PEFT keeps an embedding's factors the other way round: its table is a linear map of one-hot rows.
            factors = ((layer.lora_embedding_A["default"], up.T), (layer.lora_embedding_B["default"], down.T))
        else:
            factors = ((layer.lora_A["default"].weight, down), (layer.lora_B["default"].weight, up))
        for factor, value in factors:
            # A rank above the matrix's own leaves rows over; they stay at zero.
            factor.data.zero_()
            factor.data[: value.shape[0], : value.shape[1]] = value
    for name in backbone.head_modules:
        head = cut.base_model.model.get_submodule(name).modules_to_save["default"]
        head.load_state_dict(tuned.get_submodule(name).state_dict())
    return cut


def _set_bias(model: PreTrainedModel, heads: Sequence[str], bias: Tensor) -> None:
    """Sets that of the last linear map of the head, where it has one."""
    modules = [module for name in heads for module in model.get_submodule(name).modules()]
    last = [module for module in modules if isinstance(module, nn.Linear)][-1]
    if last.bias is not None:
        last.bias.data.copy_(bias)


def _on(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    # `PreTrainedModel.to` is wrapped in a way that hides its types.
    nn.Module.to(model, device)
    return model


def _weight(model: PreTrainedModel, name: str) -> Tensor:
    module: Any = model.get_submodule(name)
    return module.weight
