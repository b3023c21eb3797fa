"""Writes `float32.onnx` and, per-channel and dynamically quantised, `int8.onnx` of a model folder."""

import sys
from pathlib import Path

import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from plain_model import INPUTS, PlainModel, example

model, out = Path(sys.argv[1]), Path(sys.argv[2])
out.mkdir(parents=True, exist_ok=True)
torch.onnx.export(
    PlainModel(model),
    example(),
    str(out / "float32.onnx"),
    input_names=list(INPUTS),
    output_names=["logits"],
    dynamo=True,
    external_data=False,
    dynamic_shapes=({0: "batch", 1: "tokens"},) * len(INPUTS),
)
quantize_dynamic(out / "float32.onnx", out / "int8.onnx", weight_type=QuantType.QInt8, per_channel=True)
