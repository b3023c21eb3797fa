"""Tunes a bare encoder on a labelled task, then keeps what it learnt as low-rank updates, before it is frozen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from revmux_core.backbones import view
from revmux_core.backbones.base import freeze
from revmux_core.batch import pad
from revmux_core.plan import Tokens
from revmux_core.tokenization import Tokenizer
from revmux_core.training.loop import LossFunction, Schedule, train_loop
from revmux_core.training.losses import distillation

# Share of the input tokens hidden in tuning, as in pre-training (Devlin et al. 2018): small encoders otherwise learn
# a task's training texts by heart.
_MASKED = 0.1

# The word embeddings' update needs a smaller rank than the layers': 4 of 384 directions carried nearly all of it.
_EMBEDDING_SHARE = 4

# Models tuned in full, from seeds that follow each other, whose mean answer the low-rank student learns.
_TEACHERS = 2
# The student starts out close to its teachers: half their epochs do, and a higher rate led it away first.
_STUDENT_SHARE = 0.5
_STUDENT_LEARNING_RATE = 1e-4


def tune(
    load: Callable[[], PreTrainedModel],
    samples: Sequence[Tokens],
    labels: Sequence[int],
    schedule: Schedule,
    rank: int,
    folder: Path,
    tokenizer: Tokenizer,
    seed: int,
    device: torch.device,
    precision: str,
) -> tuple[PeftModel, float]:
    """Tunes word embeddings, the layers' linear maps and the head: teachers in full, then a low-rank student.

    The student starts as the first teacher with every update cut to `rank` (a quarter of it for the embeddings) by its
    singular value decomposition. As LoRA (Hu et al. 2021, arXiv 2106.09685) it then learns the teachers' mean
    log-probabilities of the same masked texts. `docs/performance.md` compares that with LoRA from the start.

    `load` makes the untuned model, with a head initialised at random. Returns the model with the student's low-rank
    updates still apart, and the seconds it took. Raises `UnsupportedModelError` as `view` does.
    """
    untuned = load().to(device)
    backbone = view(untuned)
    lengths = [len(sample) for sample in samples]
    targets = torch.tensor(labels)
    special = torch.tensor(tokenizer.special_ids)

    def masked_inputs(indices: list[int]) -> dict[str, Tensor]:
        ids, mask, type_ids = pad([samples[i] for i in indices], tokenizer.pad_id, backbone.padding_side)
        if tokenizer.mask_id is not None:
            hidden = (torch.rand(ids.shape) < _MASKED) & ~torch.isin(ids, special)
            ids = ids.masked_fill(hidden, tokenizer.mask_id)
        inputs = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
        if type_ids is not None:
            inputs["token_type_ids"] = type_ids.to(device)
        return inputs

    def run(name: str, model: nn.Module, loss_function: LossFunction, settings: Schedule, seed: int) -> float:
        trained = {key: value for key, value in model.train().named_parameters() if value.requires_grad}
        seconds = train_loop(name, trained, loss_function, lengths, settings, folder, seed, device, precision)
        model.eval().requires_grad_(False)
        return seconds

    seconds = 0.0
    teachers: list[PreTrainedModel] = []
    for teacher_seed in range(seed, seed + _TEACHERS):
        torch.manual_seed(teacher_seed)
        teacher = load().to(device)
        freeze(teacher)
        for name in backbone.lora_targets:
            teacher.get_submodule(name).weight.requires_grad_(True)
        for name in backbone.head_modules:
            teacher.get_submodule(name).requires_grad_(True)

        def teacher_loss(indices: list[int], model: PreTrainedModel = teacher) -> tuple[Tensor, dict[str, float]]:
            logits = model(**masked_inputs(indices)).logits.float()
            return F.cross_entropy(logits, targets[indices].to(device)), {}

        seconds += run(f"teacher-{teacher_seed}", teacher, teacher_loss, schedule, teacher_seed)
        teachers.append(teacher)

    student = low_rank(untuned, teachers[0], rank)

    def student_loss(indices: list[int]) -> tuple[Tensor, dict[str, float]]:
        inputs = masked_inputs(indices)
        with torch.no_grad():
            answers = [teacher(**inputs).logits.float().log_softmax(-1) for teacher in teachers]
        return distillation(student(**inputs).logits.float(), torch.stack(answers).mean(0)), {}

    settings = replace(schedule, epochs=_STUDENT_SHARE * schedule.epochs, learning_rate=_STUDENT_LEARNING_RATE)
    seconds += run("student", student, student_loss, settings, seed)
    return student, seconds


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
    cut = get_peft_model(model, config)
    for name, kept in ranks.items():
        layer = cut.base_model.model.get_submodule(name)
        change = tuned.get_submodule(name).weight - layer.base_layer.weight
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
