"""The training loop that task tuning and adapter training share: seeded, logged, resumable."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import Parameter
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from revmux_core.training.batches import length_grouped_batches

LossFunction = Callable[[list[int]], tuple[Tensor, dict[str, float]]]
"""Sample indices of one step to the loss and the figures to log."""

_LOG_EVERY = 50
_SHORT = 128
_CHECKPOINT_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and how fast to train. AdamW; linear warm-up over `warmup` of the steps, then linear decay to 0."""

    epochs: float
    learning_rate: float
    batch_size: int = 64
    weight_decay: float = 0.01
    warmup: float = 0.05
    gradient_clip: float = 1.0


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The autocast context of one step; `precision` is `bf16` or `fp32`.

    It must be entered once per step: it caches the low-precision copies of the weights until it is left, so one
    context around a whole run would train against stale weights.
    """
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def attention_kernel(device: torch.device, tokens: int) -> AbstractContextManager[None]:
    """The attention that trains fastest on batches padded to `tokens`.

    On a CPU the flash kernel's backward pass took a quarter of a step at 25 tokens, nine times its forward pass; its
    worth is the memory that it saves on long texts.
    """
    short = device.type == "cpu" and tokens <= _SHORT
    return sdpa_kernel(SDPBackend.MATH) if short else nullcontext()


def default_precision(device: torch.device) -> str:
    """`bf16` where the hardware multiplies bfloat16 natively; elsewhere it is emulated, 50 times slower."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "fp32"


def train_loop(
    name: str,
    parameters: Mapping[str, Parameter],
    loss_function: LossFunction,
    lengths: Sequence[int],
    schedule: Schedule,
    folder: Path,
    seed: int,
    device: torch.device,
    precision: str,
) -> float:
    """Trains `parameters` in place over samples of the given `lengths` (tokens).

    Writes one JSON line every 50 steps to `folder/metrics.jsonl` and a checkpoint every minute to
    `folder/NAME.safetensors`; a second call with the same arguments goes on from there, and a finished run only
    restores its result. Every step seeds the random generators from `seed` and its number, so an interrupted run
    repeats an uninterrupted one.

    Returns the seconds trained, over all resumed runs. Raises `FloatingPointError` when the loss is not finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.safetensors"
    decayed = [p for p in parameters.values() if p.ndim >= 2]
    plain = [p for p in parameters.values() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": schedule.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=schedule.learning_rate,
        fused=True,
    )
    epoch_steps = math.ceil(len(lengths) / schedule.batch_size)
    total = max(1, round(schedule.epochs * epoch_steps))
    done, before = _restore(path, parameters, optimizer)
    started = saved = time.monotonic()
    with (folder / "metrics.jsonl").open("a") as log, tqdm(total=total, initial=done, desc=name, unit="step") as bar:
        batches: list[list[int]] = []
        for step in range(done, total):
            epoch, position = divmod(step, epoch_steps)
            if not batches or position == 0:
                batches = length_grouped_batches(lengths, schedule.batch_size, seed, epoch)
            torch.manual_seed(seed * 1_000_003 + step)
            for group in optimizer.param_groups:
                group["lr"] = schedule.learning_rate * _decay(step, total, schedule.warmup)
            with attention_kernel(device, max(lengths[i] for i in batches[position])):
                with autocast(device, precision):
                    loss, figures = loss_function(batches[position])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
            if not torch.isfinite(loss):
                raise FloatingPointError(f"{name}: the loss is {loss.item()} at step {step}: lower the learning rate")
            torch.nn.utils.clip_grad_norm_(list(parameters.values()), schedule.gradient_clip)
            optimizer.step()
            bar.update()
            seconds = before + time.monotonic() - started
            if (step + 1) % _LOG_EVERY == 0 or step + 1 == total:
                figures = {"loss": loss.item(), **figures}
                bar.set_postfix({key: f"{value:.3f}" for key, value in figures.items()})
                record = {"run": name, "step": step + 1, "of": total, "seconds": round(seconds, 1), **figures}
                log.write(json.dumps(record) + "\n")
                log.flush()
            if step + 1 == total or time.monotonic() - saved > _CHECKPOINT_SECONDS:
                _save(path, parameters, optimizer, step + 1, seconds)
                saved = time.monotonic()
    return before + time.monotonic() - started if done < total else before


def _decay(step: int, total: int, warmup: float) -> float:
    ramp = max(1, round(total * warmup))
    return (step + 1) / ramp if step < ramp else (total - step) / max(1, total - ramp)


def _save(
    path: Path, parameters: Mapping[str, Parameter], optimizer: torch.optim.Optimizer, steps: int, seconds: float
) -> None:
    tensors: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        tensors[name] = parameter.detach().contiguous()
        for key, value in optimizer.state[parameter].items():
            tensors[f"{key}:{name}"] = value.contiguous()
    # A kill while writing must leave the previous checkpoint whole.
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, metadata={"steps": str(steps), "seconds": str(seconds)})
    os.replace(partial, path)


def _restore(path: Path, parameters: Mapping[str, Parameter], optimizer: torch.optim.Optimizer) -> tuple[int, float]:
    if not path.is_file():
        return 0, 0.0
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        for name, parameter in parameters.items():
            parameter.data.copy_(file.get_tensor(name))
            optimizer.state[parameter] = {
                key: file.get_tensor(f"{key}:{name}").to(parameter.device) for key in ("step", "exp_avg", "exp_avg_sq")
            }
    return int(metadata["steps"]), float(metadata["seconds"])
