"""OpenVINO behind FastAPI."""

import openvino
from dynamic_batching import arguments, serve

parser = arguments()
parser.add_argument("--xml", required=True)
parser.add_argument("--precision", choices=["f32", "bf16"], help="Left out, the plugin decides.")
options = parser.parse_args()
hints = {"PERFORMANCE_HINT": "LATENCY"} | ({"INFERENCE_PRECISION_HINT": options.precision} if options.precision else {})
compiled = openvino.Core().compile_model(options.xml, "CPU", hints)
print("precision", compiled.get_property("INFERENCE_PRECISION_HINT"), flush=True)
serve(lambda ids, mask, types: compiled((ids, mask, types))[0], options)
