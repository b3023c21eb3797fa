"""Tunes a bare encoder on a labelled task with LoRA, before it is frozen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from revmux_core.backbones import view
from revmux_core.batch import pad
from revmux_core.plan import Tokens
from revmux_core.training.loop import Schedule, train_loop


def tune(
    model: PreTrainedModel,
    samples: Sequence[Tokens],
    labels: Sequence[int],
    schedule: Schedule,
    rank: int,
    folder: Path,
    pad_id: int,
    seed: int,
    device: torch.device,
    precision: str,
) -> tuple[PeftModel, float]:
    """Low-rank updates (Hu et al. 2021, arXiv 2106.09685) on every linear map of the layers; the head is trained whole.

    Returns the tuned model with its adapters still apart, and the seconds it took. Raises `UnsupportedModelError` as
    `view` does.
    """
    backbone = view(model)
    torch.manual_seed(seed)
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=backbone.lora_targets,
        modules_to_save=backbone.head_modules,
    )
    tuned = get_peft_model(model, config).to(device)
    tuned.train()
    targets = torch.tensor(labels)

    def loss_function(indices: list[int]) -> tuple[Tensor, dict[str, float]]:
        ids, mask, type_ids = pad([samples[i] for i in indices], pad_id, backbone.padding_side)
        inputs = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
        if type_ids is not None:
            inputs["token_type_ids"] = type_ids.to(device)
        loss = F.cross_entropy(tuned(**inputs).logits.float(), targets[indices].to(device))
        return loss, {}

    parameters = {name: parameter for name, parameter in tuned.named_parameters() if parameter.requires_grad}
    seconds = train_loop(
        "task", parameters, loss_function, [len(s) for s in samples], schedule, folder, seed, device, precision
    )
    tuned.eval()
    return tuned, seconds
