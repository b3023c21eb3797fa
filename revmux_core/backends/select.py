"""Which backend runs a classifier's layers, and in which precision."""

from __future__ import annotations

from importlib.util import find_spec

import torch

from revmux_core.backends import BackendName
from revmux_core.backends.eager import EagerExecutor
from revmux_core.classifier import MuxClassifier
from revmux_core.errors import RevmuxError


def default_dtype(backend: BackendName, device: torch.device) -> torch.dtype:
    """Bfloat16 where the hardware is built for it: on GPUs, and for OpenVINO on CPUs with instructions for it.

    Float32 elsewhere: PyTorch's answers on a CPU are then the untouched model's. Raises `RevmuxError` where the backend
    is not installed.
    """
    if backend == "openvino":
        _require_openvino()
        from revmux_core.backends.openvino import has_bfloat16

        return torch.bfloat16 if has_bfloat16() else torch.float32
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def use_backend(classifier: MuxClassifier, backend: BackendName, device: torch.device, dtype: torch.dtype) -> None:
    """Moves `classifier` to `device` and has `backend` run its layers and multiplexers in `dtype`.

    Embeddings, demultiplexers and heads stay in PyTorch: in `dtype` too, or in float32 beside OpenVINO. Raises
    `RevmuxError` where the backend is not installed, or for a device that is not its own.
    """
    if backend == "torch":
        classifier.to(device=device, dtype=dtype)
        classifier.executor = EagerExecutor(classifier.backbone)
        return
    _require_openvino()
    if device.type != "cpu":
        raise RevmuxError(f"the backend openvino runs on the cpu, not on {device}: leave the device out, or use torch")
    # Heavy, and an extra.
    from revmux_core.backends.openvino import OpenVinoExecutor

    classifier.executor = OpenVinoExecutor(classifier, dtype)


def _require_openvino() -> None:
    if find_spec("openvino") is None:
        raise RevmuxError("the backend openvino is not installed: pip install 'revmux-server[openvino]'")
