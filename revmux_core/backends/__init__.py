"""What runs the layers: PyTorch as it is, which is the reference, or a compiled form of the same layers."""

from typing import Literal

BackendName = Literal["torch", "openvino"]
