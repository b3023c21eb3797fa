"""Which backend runs a classifier's layers, and in which precision."""

from __future__ import annotations

import logging
from importlib.util import find_spec

import torch

from revmux_core.backends import BackendName, DtypeName
from revmux_core.backends.eager import EagerExecutor
from revmux_core.classifier import MuxClassifier
from revmux_core.errors import RevmuxError

logger = logging.getLogger(__name__)


def choose_dtype(name: DtypeName, backend: BackendName, device: torch.device) -> torch.dtype:
    """The precision that `name` stands for; auto is the one that the hardware is built for.

    That is bfloat16 on GPUs, and for OpenVINO on CPUs with instructions for it; elsewhere float32, so that PyTorch's
    answers on a CPU are the untouched model's. Raises `RevmuxError` where the backend is not installed, or lacks this
    precision.
    """
    if name == "int8" and backend != "openvino":
        raise RevmuxError("int8 is a precision of the backend openvino only: name that, or use float32 or bfloat16")
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}[name]
    if backend == "openvino":
        _require_openvino()
        from revmux_core.backends.programs import has_bfloat16

        return torch.bfloat16 if has_bfloat16() else torch.float32
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def use_backend(
    classifier: MuxClassifier, backend: BackendName, device: torch.device, dtype: torch.dtype, sharded: bool = False
) -> None:
    """Moves `classifier` to `device` and has `backend` run its layers and multiplexers in `dtype`.

    Embeddings and heads stay in PyTorch, in `dtype` too; beside OpenVINO in float32, where no program of its holds
    them. Where it is `sharded` the frozen layers are spread over all GPUs and `device` is the first. Raises
    `RevmuxError` where the backend is not installed, or for a device, a precision or a family that it does not run.
    What Inductor lacks, a C++ compiler for one, shows when it first compiles.
    """
    if sharded:
        if backend != "torch":
            raise RevmuxError(f"a sharded model runs in PyTorch, not with the backend {backend}: use the backend torch")
        from revmux_core.sharding import adapter_bytes, shard

        classifier.to(dtype=dtype)
        classifier.adapters.to(device)
        classifier.backbone = shard(classifier.backbone, adapter_bytes(classifier.adapters, dtype))
        classifier.executor = EagerExecutor(classifier.backbone)
        return
    if backend == "torch":
        classifier.to(device=device, dtype=dtype)
        classifier.executor = EagerExecutor(classifier.backbone)
        return
    if backend == "inductor":
        # Heavy: what compiles is imported with it.
        from revmux_core.backends.graphs import capture_graph
        from revmux_core.backends.inductor import InductorExecutor

        classifier.to(device=device, dtype=dtype)
        classifier.executor = InductorExecutor(classifier, capture_graph(device) if device.type == "cuda" else None)
        return
    _require_openvino()
    if device.type != "cpu":
        raise RevmuxError(f"the backend openvino runs on the cpu, not on {device}: leave the device out, or use torch")
    if not classifier.backbone.packs:
        # It has several texts share a row.
        raise RevmuxError("the backend openvino runs encoders only: use the backend torch")
    # Heavy, and an extra.
    from revmux_core.backends.openvino import OpenVinoExecutor
    from revmux_core.backends.programs import has_bfloat16, multiplies_in_int8

    if dtype == torch.bfloat16 and not has_bfloat16():
        # OpenVINO would compute in float32 and not say so, under a calibration that was made in bfloat16.
        raise RevmuxError(
            "the backend openvino has no bfloat16 on this CPU, which lacks AVX-512 BF16 and AMX: use float32 or int8, "
            "or leave the precision out"
        )
    if dtype == torch.int8 and not multiplies_in_int8():
        logger.warning(
            "int8 saves memory but no time on this CPU: without VNNI, or with AMX, OpenVINO only keeps the weights in "
            "8 bits and multiplies in float32 or bfloat16; leave the precision out for what is fastest here"
        )
    classifier.executor = OpenVinoExecutor(classifier, dtype)


def _require_openvino() -> None:
    if find_spec("openvino") is None:
        raise RevmuxError("the backend openvino is not installed: pip install 'revmux-server[openvino]'")
