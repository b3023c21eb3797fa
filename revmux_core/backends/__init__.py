"""What runs the layers: PyTorch as it is, which is the reference, or a compiled form of the same layers.

`inductor` is what `torch.compile` compiles with, and on a GPU captures in CUDA graphs.
"""

import os
from typing import Literal

BackendName = Literal["torch", "inductor", "openvino"]

SHARDED = "sharded"
"""What stands for a device where layers are spread over all GPUs."""

DtypeName = Literal["auto", "float32", "bfloat16", "int8"]
"""Precision of the matrix products; auto is `select.default_dtype`."""


def prepare_process(backend: BackendName) -> BackendName:
    """What has to be set before PyTorch is first imported, for `backend`.

    Beside OpenVINO, PyTorch's threads wait asleep: as OpenMP has them do, they spin for milliseconds after each
    operation on the cores that OpenVINO's threads need next. A sentence alone takes 4.4 ms for 7.3 then, 16 of them 31
    to 36 for 36 to 38 (2 cores). In PyTorch alone waking them up costs 5 to 10%.
    """
    if backend == "openvino":
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    return backend
