"""Layers compiled by OpenVINO, for CPUs.

Hidden states between pieces, embeddings, pooling and heads are float32, whatever the layers' matrix products are in.
Measured in `docs/performance.md`.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

import numpy as np
import openvino as ov
import torch
from openvino import opset13 as opset
from openvino.frontend import FrontEndManager
from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder
from torch import Tensor, nn

from revmux_core.backends import BackendName
from revmux_core.backends.pieces import Layers, Multiplexing, Piece, Pieces, check_outputs, example_states
from revmux_core.batch import Words
from revmux_core.classifier import MuxClassifier
from revmux_core.composites import Composites, demultiplex, multiplex
from revmux_core.multiplexing import Multiplexer
from revmux_core.packing import Packing, pack
from revmux_core.points import OperatingPoint

TOLERANCE, HIGHEST_TOLERANCE = 0.05, 0.5
"""Relative error a layer at which a compiled piece is refused, and of any piece: what tracing gets wrong is as large as
the states. On random states bfloat16's is about 0.005 in one layer and 0.017 in six, that of int8 0.022 and 0.11."""

QUANTIZED_TOGETHER = 128
"""Neighbouring input channels of a token that share a scale in int8: as fast as all of them, and closer."""


POSITION_STEP = 64
"""Positions that are mixed together are padded to multiples of this, for the same reason as rows are packed."""


def has_bfloat16() -> bool:
    """Whether this CPU has instructions for it: AVX-512 BF16 or AMX."""
    return "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class _Packed(Layers):
    """Neighbouring layers as one module, on rows of several texts."""

    def forward(self, hidden: Tensor, segments: Tensor) -> Tensor:
        """Rows `[R, T, d]`; `segments` `[R, T]` numbers the text that a position is of."""
        return super().forward(hidden, segments.unsqueeze(2) == segments.unsqueeze(1))


class _Mix(nn.Module):
    """A positionwise multiplexer on positions of many composites alike, for tracing."""

    def __init__(self, multiplexer: Multiplexer) -> None:
        super().__init__()
        self.multiplexer = multiplexer

    def forward(self, states: Tensor) -> Tensor:
        """Positions `[P, N, d]` to those of composites, `[P, d]`."""
        samples = states.transpose(0, 1).unsqueeze(0)
        return self.multiplexer.multiplex(samples, torch.ones_like(samples[..., 0]))[0].squeeze(0)


class OpenVinoExecutor:
    """Runs layers as compiled pieces, cut where any point of the classifier multiplexes, stops or skips layers.

    The plain path by itself runs as one piece, so that a text alone waits less. All pieces of the frozen layers are
    compiled when any is first run, for as many threads as PyTorch has. `dtype` is the precision of the matrix products.
    """

    backend: BackendName = "openvino"
    packs = True

    def __init__(self, classifier: MuxClassifier, dtype: torch.dtype) -> None:
        self._backbone = classifier.backbone
        self._pieces = Pieces(classifier)
        self._programs: dict[Piece | Multiplexer, ov.InferRequest] = {}
        self._dtype = dtype
        self._core = ov.Core()
        rest = torch.bfloat16 if dtype == torch.int8 and has_bfloat16() else dtype
        self._options: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "bf16" if rest == torch.bfloat16 else "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": QUANTIZED_TOGETHER if dtype == torch.int8 else 0,
        }

    @property
    def precision(self) -> str:
        return str(self._dtype).removeprefix("torch.")

    def limit(self, points: Collection[OperatingPoint]) -> None:
        self._pieces.limit(points)
        self._programs.clear()

    def positions(self, lengths: Sequence[int]) -> int:
        return sum(packing.positions for packing in self._pack(lengths))

    def run(self, hidden: Tensor, mask: Tensor, layers: Sequence[nn.Module]) -> Tensor:
        lengths = mask.sum(dim=1).tolist()
        held = mask.flatten().nonzero().squeeze(1)
        flat, parts = hidden.flatten(0, 1), []
        # Where every position of the batch stands in the rows. Padding reads the first one: what is there is arbitrary.
        standing, before = torch.zeros(mask.numel(), dtype=torch.long), 0
        for packing in self._pack(lengths):
            own, places, segments = _layout(packing, lengths)
            # Padding of the rows too, as a NaN in it would spread through a mask.
            source = held[:1].repeat(packing.positions)
            source[places] = held[own]
            standing[held[own]] = places + before
            before += packing.positions
            # One pass over the states on their way in and one on their way out, whatever is padded.
            packed = flat.index_select(0, source).unflatten(0, (-1, packing.length))
            parts.append(self._run_pieces(packed, segments, layers).flatten(0, 1))
        packed = parts[0] if len(parts) == 1 else torch.cat(parts)
        return packed.index_select(0, standing).view_as(hidden)

    def _pack(self, lengths: Sequence[int]) -> list[Packing]:
        return pack(lengths, 1 / (6 * self._backbone.hidden_size))

    def _run_pieces(self, hidden: Tensor, segments: Tensor, layers: Sequence[nn.Module]) -> Tensor:
        frozen = self._pieces.frozen
        if frozen not in self._programs:
            # What a plain batch does not need is what the first escalated sample will, when nobody wants to wait.
            for piece in (frozen, *self._pieces.cut(frozen)):
                self._program(piece)
        for piece in [frozen] if tuple(layers) == frozen else self._pieces.cut(layers):
            request, output = self._program(piece), torch.empty(hidden.shape)
            # All tensors are shared with PyTorch: no state is copied on its way in or out.
            request.set_input_tensor(0, _shared(hidden))
            request.set_input_tensor(1, _shared(segments))
            request.set_output_tensor(0, _shared(output))
            request.infer()
            hidden = output
        return hidden

    def _program(self, piece: Piece) -> ov.InferRequest:
        if piece not in self._programs:
            self._programs[piece] = self._compile(_Packed(self._backbone, piece))
        return self._programs[piece]

    def multiplex(self, multiplexer: Multiplexer, hidden: Tensor, mask: Tensor) -> Composites:
        width = multiplexer.width
        if width == 1:
            # Next to nothing to compute, which kernels for one more shape are not worth.
            return multiplex(self._backbone, multiplexer, hidden, mask)
        if multiplexer.positionwise:
            return multiplex(self._backbone, multiplexer, hidden, mask, partial(self._mix, multiplexer))
        if multiplexer not in self._programs:
            self._programs[multiplexer] = self._compile(Multiplexing(self._backbone, multiplexer), width)
        request = self._programs[multiplexer]
        # Held until they were read: sharing does not keep them alive.
        hidden, mask = hidden.contiguous(), mask.contiguous()
        request.set_input_tensor(0, _shared(hidden))
        request.set_input_tensor(1, _shared(mask))
        request.infer()
        # Copied: the next batch overwrites the program's own outputs, whose shapes only it knows beforehand.
        composite, union, own = (torch.from_numpy(request.get_output_tensor(n).data.copy()) for n in range(3))
        return Composites(composite, union, own, mask)

    def demultiplex(
        self, multiplexer: Multiplexer, hidden: Tensor, composites: Composites, words: Words | None
    ) -> Tensor:
        # Little to compute, in as many shapes as there are batches: kernels for each would cost more.
        return demultiplex(self._backbone, multiplexer, hidden, composites, words)

    def _mix(self, multiplexer: Multiplexer, hidden: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """`Multiplexer.multiplex`, of the positions that hold text only."""
        union = mask.amax(dim=1)
        held = union.flatten().nonzero().squeeze(1)
        _, width, length = mask.shape
        count = -(-len(held) // POSITION_STEP) * POSITION_STEP
        # Composite `held // length` at position `held % length`, of each of its samples.
        source = torch.zeros(count, width, dtype=torch.long)
        first = held + held // length * length * (width - 1)
        source[: len(held)] = first.unsqueeze(1) + torch.arange(width) * length
        states = hidden.flatten(0, 2).index_select(0, source.flatten()).unflatten(0, (count, width))
        if multiplexer not in self._programs:
            self._programs[multiplexer] = self._compile(_Mix(multiplexer), multiplexer.width)
        request, mixed = self._programs[multiplexer], torch.empty(len(states), hidden.shape[3])
        request.set_input_tensor(0, _shared(states))
        request.set_output_tensor(0, _shared(mixed))
        request.infer()
        # Padding reads the first position: what is there is arbitrary.
        standing = torch.zeros(union.numel(), dtype=torch.long)
        standing[held] = torch.arange(len(held))
        return mixed.index_select(0, standing).view(*union.shape, -1), union

    def _compile(self, module: nn.Module, width: int = 1) -> ov.InferRequest:
        """`module` of hidden states `[R, T, d]` and a mask `[R, T]`; R is a multiple of `width`.

        Raises `RevmuxError` where the compiled form computes something else.
        """
        size = self._backbone.hidden_size
        with torch.no_grad(), warnings.catch_warnings():
            # Tracing remarks on Python conditions in the model's mask code; `_check` sees to what comes of them.
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(module.eval(), _example(module, 2 * width, 8, size), check_trace=False)
        # Not `ov.convert_model`, which reports its use over the network.
        frontend = FrontEndManager().load_by_framework("pytorch")
        # Held here: the frontend does not keep it alive.
        decoder = TorchScriptPythonDecoder(traced)
        model = frontend.convert(frontend.load(decoder))
        if isinstance(module, _Mix):
            model.reshape({0: ov.PartialShape([-1, width, size])})
        else:
            model.reshape({0: ov.PartialShape([-1, -1, size]), 1: ov.PartialShape([-1, -1])})
        if self._dtype == torch.int8 and not isinstance(module, Multiplexing):
            _quantize(model)
        request = self._core.compile_model(model, "CPU", self._options).create_infer_request()
        _check(module, request, _example(module, 3 * width, 11, size))
        return request


def _layout(packing: Packing, lengths: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Where texts stand in packed rows.

    `own` `[P]`: the held positions of all texts, of `lengths` in their order, that stand in these rows; `places` `[P]`:
    where they stand, in the flattened rows; `segments` `[rows, T]`: 1, 2, ... for a row's texts, 0 for padding.
    """
    starts = np.concatenate([[0], np.cumsum(lengths)])
    own, places = [], []
    segments = np.zeros((len(packing.rows), packing.length), dtype=np.int64)
    for number, row in enumerate(packing.rows):
        stop = 0
        for segment, text in enumerate(row, start=1):
            start, stop = stop, stop + lengths[text]
            segments[number, start:stop] = segment
            own.append(np.arange(starts[text], starts[text + 1]))
        places.append(np.arange(stop) + number * packing.length)
    return (
        torch.from_numpy(np.concatenate(own)),
        torch.from_numpy(np.concatenate(places)),
        torch.from_numpy(segments),
    )


def _quantize(model: ov.Model) -> None:
    """Has the linear maps of `model` multiply in int8.

    Weights get 8 bits, a scale and a zero point for every output channel. `DYNAMIC_QUANTIZATION_GROUP_SIZE` has
    OpenVINO quantize the inputs too, as they come, so no data is needed beforehand. What that costs in agreement is
    measured when a bundle is calibrated.
    """
    for node in model.get_ordered_ops():
        if node.get_type_name() != "MatMul" or not node.get_attributes()["transpose_b"]:
            continue
        constant = node.input(1).get_source_output().get_node()
        if constant.get_type_name() != "Constant":
            continue
        weight = np.asarray(constant.data, dtype=np.float32)
        # Zero must be exact, so the range holds it.
        low = np.minimum(weight.min(axis=1, keepdims=True), 0)
        scale = np.maximum(np.maximum(weight.max(axis=1, keepdims=True), 0) - low, 1e-12) / 255
        zero = np.round(-low / scale)
        codes = np.clip(np.round(weight / scale) + zero, 0, 255).astype(np.uint8)
        centred = opset.subtract(
            opset.convert(opset.constant(codes), np.float32),
            opset.convert(opset.constant(zero.astype(np.uint8)), np.float32),
        )
        restored = opset.multiply(centred, opset.constant(scale.astype(np.float32)))
        node.input(1).replace_source_output(restored.output(0))


def _example(module: nn.Module, rows: int, length: int, size: int) -> tuple[Tensor, ...]:
    """What `module` takes, in which `_Mix` differs from the others."""
    if isinstance(module, _Mix):
        return (example_states(length, module.multiplexer.width, size)[0],)
    return example_states(rows, length, size)


def _check(module: nn.Module, request: ov.InferRequest, example: tuple[Tensor, ...]) -> None:
    """Tracing takes what it cannot follow for a constant, so what it made is tried on sizes that it did not see."""
    with torch.no_grad():
        outputs = module(*example)
    expected = (outputs,) if isinstance(outputs, Tensor) else outputs
    request.infer([_shared(tensor) for tensor in example])
    found = [torch.from_numpy(request.get_output_tensor(n).data.copy()) for n in range(len(expected))]
    tolerance = min(TOLERANCE * (len(module.layers) if isinstance(module, Layers) else 1), HIGHEST_TOLERANCE)
    check_outputs("openvino", found, expected, None if isinstance(module, _Mix) else example[1], tolerance)


def _shared(tensor: Tensor) -> ov.Tensor:
    array: np.ndarray = tensor.detach().numpy()
    return ov.Tensor(array, shared_memory=True)
