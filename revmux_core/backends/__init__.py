"""What runs the layers: PyTorch as it is, which is the reference, or a compiled form of the same layers.

`inductor` is what `torch.compile` compiles with, and on a GPU captures in CUDA graphs.
"""

from typing import Literal

BackendName = Literal["torch", "inductor", "openvino"]

SHARDED = "sharded"
"""What stands for a device where layers are spread over all GPUs."""

DtypeName = Literal["auto", "float32", "bfloat16", "int8"]
"""Precision of the matrix products; auto is `select.default_dtype`."""
