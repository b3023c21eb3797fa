"""Which peers there are, and the settings of each: as its documentation starts it, and its best documented one."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from loadtest.machine import has_bfloat16
from loadtest.peers.peer import BFLOAT16, Command, Peer, Setting
from loadtest.peers.wires import INFINITY, SERVED_NAME, labelled
from loadtest.wire import CLASSIFY


def _app(name: str, *options: str) -> Command:
    return ("{python}", f"{{apps}}/{name}_app.py", "--model", "{model}", *options)


# Its optimum engine finds a local model's file only where that is the working folder, keeps what it optimises in the
# hub's cache, and cannot run its own warm-up, whose texts it does not cut.
_IN_ITS_FOLDER = ("env", "--chdir={work}/onnx", "HF_HUB_CACHE={work}/cache")


def _infinity(*options: str) -> Command:
    return ("{bin}/infinity_emb", "v2", "--served-model-name", SERVED_NAME, "--device", "cpu", *options)


_CLASSIFY_TEXT = labelled("/classify")
_FIRST = "as documented"

PEERS: Sequence[Peer] = (
    Peer(
        "infinity",
        "Infinity",
        "infinity-emb",
        (
            Setting(
                _FIRST,
                "float32",
                "`infinity_emb v2 --engine torch --device cpu`, with BetterTransformer, batches of up to 32",
                _infinity("--model-id", "{model}", "--engine", "torch"),
                INFINITY,
            ),
        ),
    ),
    Peer(
        "infinity-onnx",
        "Infinity",
        "infinity-emb",
        (
            Setting(
                "optimum engine",
                "float32",
                "`--engine optimum --no-model-warmup` on the model as `optimum-cli export onnx` writes it",
                (*_IN_ITS_FOLDER, *_infinity("--model-id", ".", "--engine", "optimum", "--no-model-warmup")),
                INFINITY,
            ),
            Setting(
                "torch engine of newer packages",
                "float32",
                "as documented, with a newer Transformers, for which there is no BetterTransformer",
                _infinity("--model-id", "{model}", "--engine", "torch"),
                INFINITY,
            ),
        ),
        prepare=(
            *("{bin}/optimum-cli", "export", "onnx", "--model", "{model}"),
            *("--task", "text-classification", "{work}/onnx"),
        ),
    ),
    Peer(
        "litserve",
        "LitServe",
        "litserve",
        (
            Setting(
                _FIRST,
                "float32",
                "a `LitAPI` around a Transformers pipeline, one request at a time",
                _app("litserve"),
                labelled("/predict"),
            ),
            Setting(
                "batched",
                "float32",
                "`max_batch_size=64, batch_timeout=0.005`",
                _app("litserve", "--max-batch", "64"),
                labelled("/predict"),
            ),
        ),
    ),
    Peer(
        "rayserve",
        "Ray Serve",
        "ray",
        (
            Setting(_FIRST, "float32", "a deployment around a Transformers pipeline", _app("rayserve"), _CLASSIFY_TEXT),
            Setting(
                "batched",
                "float32",
                "`@serve.batch(max_batch_size=64, batch_wait_timeout_s=0.005)`, every core for the replica, "
                "`RAY_SERVE_THROUGHPUT_OPTIMIZED=1`",
                _app("rayserve", "--max-batch", "64"),
                _CLASSIFY_TEXT,
                {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"},
            ),
        ),
    ),
    Peer(
        "fastapi",
        "FastAPI + Transformers",
        "transformers",
        (
            Setting(_FIRST, "float32", "a pipeline in a blocking endpoint", _app("fastapi"), _CLASSIFY_TEXT),
            Setting(
                "batched",
                "float32",
                "the queue of Transformers' page on web servers, up to 64 at once",
                _app("fastapi", "--batched"),
                _CLASSIFY_TEXT,
            ),
        ),
    ),
    Peer(
        "onnxruntime",
        "ONNX Runtime + FastAPI",
        "onnxruntime",
        tuple(
            Setting(
                name,
                precision,
                about,
                _app("onnxruntime", "--onnx", f"{{work}}/{precision}.onnx", "--max-batch", batch),
                _CLASSIFY_TEXT,
            )
            for name, precision, batch, about in (
                (_FIRST, "float32", "1", "`InferenceSession(path)`, one request at a time"),
                ("batched", "float32", "32", "batches of up to 32, sorted by length"),
                ("batched", "int8", "32", "the same, `quantize_dynamic(per_channel=True, weight_type=QInt8)`"),
            )
        ),
        prepare=("{python}", "{apps}/onnxruntime_convert.py", "{model}", "{work}"),
    ),
    Peer(
        "openvino",
        "OpenVINO + FastAPI",
        "openvino",
        tuple(
            Setting(
                name,
                precision,
                about,
                _app("openvino", "--xml", f"{{work}}/{file}.xml", "--max-batch", batch, *options),
                _CLASSIFY_TEXT,
            )
            for name, precision, file, batch, options, about in (
                (
                    _FIRST,
                    "the plugin's own",
                    "float32",
                    "1",
                    (),
                    "`compile_model(path, 'CPU', LATENCY)`, one request at a time; bfloat16 where the CPU has it",
                ),
                (
                    "batched",
                    "float32",
                    "float32",
                    "32",
                    ("--precision", "f32"),
                    "batches of up to 32, sorted by length, `INFERENCE_PRECISION_HINT` f32",
                ),
                ("batched", BFLOAT16, "float32", "32", ("--precision", "bf16"), "the same, with bf16"),
                (
                    "batched",
                    "int8",
                    "int8",
                    "32",
                    ("--precision", "f32"),
                    "the same, `nncf.quantize(model_type=TRANSFORMER)`, the rest float32",
                ),
            )
        ),
        prepare=("{python}", "{apps}/openvino_convert.py", "{model}", "{texts}", "{work}"),
    ),
    Peer(
        "vllm",
        "vLLM",
        "vllm",
        (
            Setting(
                _FIRST,
                "auto",
                "`vllm serve MODEL --runner pooling`",
                ("{bin}/vllm", "serve", "{model}", "--runner", "pooling", "--served-model-name", SERVED_NAME),
                CLASSIFY,
            ),
        ),
        needs_gpu=True,
    ),
)

PLAIN, BY_LOAD, EXIT = "plain", "guaranteed, width by load", "fast, exit after 3 layers"
PYTORCH, OPENVINO, INT8 = "float32", "float32, OpenVINO", "int8"


def ours(bundle: str, base: Path | None, options: Sequence[str]) -> Peer:
    """Our own server in its ways, on PyTorch and on OpenVINO, in the running environment; `options` go to all."""
    serve = [sys.executable, "-m", "server.cli", "serve", "--bundle", bundle]
    if base is not None:
        serve += ["--base", str(base)]
    modes = {
        PLAIN: ("--width", "1", "--quality", "exact"),
        "guaranteed": ("--width", "max", "--quality", "guaranteed"),
        BY_LOAD: ("--width", "auto", "--quality", "guaranteed"),
        "fast": ("--width", "2", "--quality", "fast"),
        EXIT: ("--point", "n1-l3", "--quality", "fast"),
    }
    backends: dict[str, tuple[str, ...]] = {
        PYTORCH: (),
        OPENVINO: ("--backend", "openvino", "--dtype", "float32"),
        BFLOAT16: ("--backend", "openvino", "--dtype", "bfloat16"),
        INT8: ("--backend", "openvino", "--dtype", "int8"),
    }
    # In int8 the demo's own plain path differs too often from PyTorch's to certify it with 872 texts. In float32 some
    # are left out, as a round is long enough, but OpenVINO's where that is the best there is.
    left_out = {("guaranteed", INT8), (BY_LOAD, INT8), (BY_LOAD, PYTORCH), (EXIT, PYTORCH)}
    if has_bfloat16():
        left_out |= {(name, OPENVINO) for name in modes if name != PLAIN}
    settings = [
        Setting(name, precision, f"`revmux serve {' '.join((*mode, *own))}`", (*serve, *mode, *own), CLASSIFY)
        for precision, backend in backends.items()
        for name, mode in modes.items()
        for own in [(*backend, *options)]
        if (name, precision) not in left_out
    ]
    return Peer("ours", "RevMUX Server", "revmux-server", settings)
