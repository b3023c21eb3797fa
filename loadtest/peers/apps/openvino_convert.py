"""Writes `float32.xml` and, quantised by NNCF on the given texts (a line each), `int8.xml` of a model folder."""

import sys
from pathlib import Path

import nncf
import openvino
import torch
from dynamic_batching import padded
from plain_model import PlainModel, example
from tokenizers import Tokenizer

folder, texts, out = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
out.mkdir(parents=True, exist_ok=True)
with torch.inference_mode():
    model = openvino.convert_model(PlainModel(folder), example_input=example())
openvino.save_model(model, out / "float32.xml", compress_to_fp16=False)
tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
samples = [padded([tokenizer.encode(line).ids]) for line in texts.read_text().splitlines()]
quantised = nncf.quantize(model, nncf.Dataset(samples), model_type=nncf.ModelType.TRANSFORMER)
openvino.save_model(quantised, out / "int8.xml", compress_to_fp16=False)
