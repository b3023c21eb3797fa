"""ONNX Runtime behind FastAPI."""

import onnxruntime
from dynamic_batching import arguments, serve

parser = arguments()
parser.add_argument("--onnx", required=True)
options = parser.parse_args()
session = onnxruntime.InferenceSession(options.onnx, providers=["CPUExecutionProvider"])
serve(lambda ids, mask, types: session.run(None, {"ids": ids, "mask": mask, "types": types})[0], options)
