"""Modules compiled by OpenVINO, and what is compiled of a classifier."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import openvino as ov
import torch
import torch.nn.functional as F
from openvino import opset13 as opset
from openvino.frontend import FrontEndManager
from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder
from openvino.preprocess import PrePostProcessor
from torch import Tensor, nn

from revmux_core.backbones import PackingBackbone
from revmux_core.backends.pieces import Adapter, Demultiplexing, Layers, Multiplexing, check_outputs, example_states
from revmux_core.errors import RevmuxError
from revmux_core.multiplexing import Multiplexer

TOLERANCE, HIGHEST_TOLERANCE = 0.05, 0.5
"""Relative error a layer at which a program is refused, and of any program: what tracing gets wrong is as large as
the states. On random states bfloat16's is about 0.005 in one layer and 0.017 in six, that of int8 0.022 and 0.11."""

INDEPENDENCE = 1e-3
"""Relative error from which on a text's outcome depends on the others of its row. Rounding makes none: 0.04 and more
come of a last layer alone that reads them (the demo bundles), which is within the tolerance."""

BFLOAT16 = np.dtype(np.uint16)
"""What NumPy, which has no bfloat16, holds it as. No program takes numbers of 16 bits."""

QUANTIZED_TOGETHER = 128
"""Neighbouring input channels of a token that share a scale in int8: as fast as all of them, and closer."""

Shapes = tuple[tuple[int, ...], ...]
"""Those of all inputs of a program, with -1 for any number."""

Example = Callable[[int, int], Sequence[np.ndarray]]
"""So many rows of a length to inputs of a program."""

logger = logging.getLogger(__name__)


def has_bfloat16() -> bool:
    """Whether this CPU has instructions for it: AVX-512 BF16 or AMX."""
    return "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def multiplies_in_int8() -> bool:
    """Whether OpenVINO multiplies what `_quantize` made in int8 on this CPU: with VNNI and no AMX, or no x86.

    On another x86 it restores the weights and multiplies in float32, or bfloat16, as the names of its kernels say
    (`brgemm_avx2_f32`, `brgemm_avx512_amx_bf16`). It lists INT8 among its capabilities on all of these. AVX-VNNI and
    other processors were not tried.
    """
    has = torch.cpu.get_capabilities()
    if not has.get("avx2"):
        return True
    return bool(has.get("avx512_vnni") or has.get("avx_vnni")) and not has.get("amx_tile")


class PackedLayers(Layers):
    """Neighbouring layers as one module, on rows of several texts."""

    def forward(self, hidden: Tensor, segments: Tensor) -> Tensor:
        """Rows `[R, T, d]`; `segments` `[R, T]` numbers the text that a position is of."""
        return super().forward(hidden, segments.unsqueeze(2) == segments.unsqueeze(1))


class PackedEnd(nn.Module):
    """Neighbouring layers that end with the model's last one, after which only some positions of the rows are read."""

    def __init__(self, backbone: PackingBackbone, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self._backbone = backbone
        self.layers = nn.ModuleList(layers)

    def forward(self, hidden: Tensor, segments: Tensor, at: Tensor) -> Tensor:
        """Rows and `segments` as in `PackedLayers`, to the states of the positions `at` `[R, K]`: `[R, K, d]`."""
        *before, last = self.layers
        if before:
            hidden = self._backbone.run(hidden, segments.unsqueeze(2) == segments.unsqueeze(1), before)
        mask = segments.gather(1, at).unsqueeze(2) == segments.unsqueeze(1)
        return self._backbone.run_at(hidden, at, mask, last)


class Mix(Adapter):
    """What a positionwise multiplexer makes of positions, of many composites alike."""

    def forward(self, flat: Tensor, source: Tensor) -> Tensor:
        """States `[F, d]`, and where each position of the composites `[P]` is in each of its samples, `[P, N]`, to
        those of composites, `[P, d]`."""
        # `[1, N, P, d]`.
        samples = F.embedding(source.transpose(0, 1), flat).unsqueeze(0)
        return self.multiplexer.multiplex(samples, torch.ones_like(samples[..., 0]))[0].squeeze(0)


class Shortcut(Adapter):
    """A multiplexer's shortcut, for all texts of some rows."""

    def forward(self, hidden: Tensor, segments: Tensor, pooled: Tensor) -> Tensor:
        """Rows `[R, T, d]`, their `segments` `[R, T]` as in `PackedLayers`, and the pooled states of up to K texts in
        each, `[R, K, d]`, to `[R, K, k]`."""
        numbers = torch.ones_like(pooled[0, :, 0]).cumsum(0)
        mask = segments.unsqueeze(1) == numbers.view(1, -1, 1)
        return self.multiplexer.shortcut(hidden, mask, pooled)


class TokenPath(nn.Module):
    """A way that begins with tokens as one module: `layers`, and what is made of their outcome."""

    def __init__(self, backbone: PackingBackbone, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self._backbone = backbone
        self.layers = layers
        # Else the first trace would take it for a part of the program.
        backbone.join_tables()

    def example(self, count: int, length: int) -> tuple[Tensor, ...]:
        """What `forward` takes, of so many rows of two texts."""
        # Few enough for any model's tables.
        ids = torch.arange(length) % 8
        tokens = torch.stack([ids, ids * 0, ids], dim=-1).expand(count, -1, -1).contiguous()
        return tokens, *_example_rows(count, length)


class PlainPath(TokenPath):
    """The plain path, to its logits."""

    def __init__(self, backbone: PackingBackbone, layers: Sequence[nn.Module]) -> None:
        super().__init__(backbone, layers)
        self._end = PackedEnd(backbone, layers)

    def forward(self, tokens: Tensor, segments: Tensor, at: Tensor) -> Tensor:
        """Rows of tokens `[R, T, 3]`, as `embed_tokens` takes them, `segments` and `at` as in `PackedEnd`, to what the
        head reads there and its logits, `[R, K, d + C]`."""
        states = self._end(self._backbone.embed_tokens(tokens), segments, at)
        return _with_logits(self._backbone, states.flatten(0, 1)).unflatten(0, at.shape)


class PrefillPath(TokenPath):
    """A point's prefill, and what its multiplexer keeps of each text."""

    def __init__(self, backbone: PackingBackbone, layers: Sequence[nn.Module], multiplexer: Multiplexer) -> None:
        super().__init__(backbone, layers)
        self._run = PackedLayers(backbone, layers)
        self._shortcut = Shortcut(backbone, multiplexer)

    def forward(self, tokens: Tensor, segments: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        """As `PlainPath`, to the shortcut of each text, `[R, K, k]`, and the rows' states, `[R, T, d]`."""
        _, own, hidden = self._prefill(tokens, segments, at)
        return own, hidden

    def _prefill(self, tokens: Tensor, segments: Tensor, at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same, behind the texts' first positions, `[R, K, d]`."""
        hidden = self._run(self._backbone.embed_tokens(tokens), segments)
        firsts = hidden.gather(1, at.unsqueeze(2).expand(-1, -1, hidden.shape[2]))
        return firsts, self._shortcut(hidden, segments, firsts), hidden


class ExitPath(PrefillPath):
    """An early exit to its logits, whose texts can go on from where it leaves the layers."""

    def __init__(self, backbone: PackingBackbone, layers: Sequence[nn.Module], multiplexer: Multiplexer) -> None:
        super().__init__(backbone, layers, multiplexer)
        self._demultiplex = Demultiplexing(backbone, multiplexer)

    def forward(self, tokens: Tensor, segments: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        """As `PlainPath`, and the rows' states after the layers, `[R, T, d]`."""
        firsts, own, hidden = self._prefill(tokens, segments, at)
        alone = firsts.flatten(0, 1).unsqueeze(1)
        pooled = self._demultiplex(alone, own.flatten(0, 1), torch.ones_like(alone[..., 0]))
        return _with_logits(self._backbone, pooled).unflatten(0, at.shape), hidden


class CompositePath(nn.Module):
    """Prefilled texts to logits: composites of them, a point's upper `layers`, and what separates them."""

    def __init__(self, backbone: PackingBackbone, layers: Sequence[nn.Module], multiplexer: Multiplexer) -> None:
        super().__init__()
        self._backbone = backbone
        self.layers = layers
        self.multiplexer = multiplexer
        self._mix = Mix(backbone, multiplexer)
        self._end = PackedEnd(backbone, layers)
        self._demultiplex = Demultiplexing(backbone, multiplexer)

    def forward(self, flat: Tensor, source: Tensor, segments: Tensor, at: Tensor, own: Tensor) -> Tensor:
        """States `[F, d]`; where each position of rows of composites is in each of its samples, `source` `[R, T, N]`;
        `segments` and `at` of these rows as in `PackedEnd`; and the samples' shortcuts, `[R, K, N, k]`. To what the
        head reads of each sample and its logits, `[R, K, N, d + C]`."""
        mixed = self._mix(flat, source.flatten(0, 1)).unflatten(0, segments.shape)
        firsts = self._end(mixed, segments, at).flatten(0, 1).unsqueeze(1)
        samples = own.flatten(0, 2)
        pooled = self._demultiplex(firsts, samples, torch.ones_like(samples[:, :1]))
        return _with_logits(self._backbone, pooled).unflatten(0, (*at.shape, self.multiplexer.width))

    def example(self, count: int, length: int, size: int) -> tuple[Tensor, ...]:
        """What `forward` takes, of so many rows of two composites."""
        width = self.multiplexer.width
        segments, at = _example_rows(count, length)
        hidden, mask = example_states(count * width, length, size)
        source = torch.arange(count * length * width).reshape(count, length, width)
        own = self.multiplexer.shortcut(hidden, mask, hidden[:, 0]).detach().unflatten(0, (count, 1, width))
        return hidden.flatten(0, 1), source, segments, at, own.repeat(1, at.shape[1], 1, 1)


def _with_logits(backbone: PackingBackbone, pooled: Tensor) -> Tensor:
    """What the head reads, `[S, d]`, and behind it its logits: `[S, d + C]`."""
    return torch.cat([pooled, backbone.head(pooled)], dim=-1)


def _example_rows(count: int, length: int) -> tuple[Tensor, Tensor]:
    """`segments` and `at` of so many rows of two texts, as in `PackedEnd`, with a third place that has none."""
    segments = (torch.arange(length) * 2 // length + 1).expand(count, -1).contiguous()
    return segments, torch.tensor([[0, (length + 1) // 2, length - 1]]).repeat(count, 1)


class Program:
    """A compiled module, which `compiled` makes. Arrays are shared with it: none is copied on its way in.

    OpenVINO prepares all of a program anew whenever its inputs have other shapes than the last time, which takes up to
    as long as a text alone does. So few rows may have programs of their own, each of one shape.
    """

    def __init__(self, compiled: Callable[[Shapes | None], ov.InferRequest], example: Example) -> None:
        self._compiled, self._example = compiled, example
        self._request = compiled(None)
        self._fixed: dict[Shapes, _Fixed] = {}
        # Once, as each batch asks for it.
        self._rooms = {
            number: (port.partial_shape[-1].get_length(), _kind(port))
            for number, port in enumerate(self._request.model_outputs)
            if port.partial_shape[-1].is_static
        }

    def empty(self, output: int, rows: int) -> np.ndarray:
        """Room for so many rows of one of the module's outputs, whatever is in them: `[rows, its last dimension]`."""
        size, kind = self._rooms[output]
        return np.empty((rows, size), kind)

    def fix(self, shapes: Iterable[tuple[int, int, int]]) -> None:
        """Makes a program each, on all cores, for so many rows of a length with so many places for texts. One in which
        texts read each other is left out."""
        examples = []
        for rows, length, places in shapes:
            content, segments, *at = self._example(rows, length)
            examples.append((content, segments, *(each[:, np.arange(places).clip(max=2)] for each in at)))
        with ThreadPoolExecutor() as pool:
            requests = pool.map(self._compiled, map(_with_open_places, examples))
            for inputs, request in zip(examples, requests, strict=True):
                fixed = _Fixed(request, inputs)
                if _independent(fixed.run, inputs):
                    self._fixed[tuple(array.shape for array in inputs)] = fixed
                else:
                    logger.warning("OpenVINO mixes texts up in %d rows of %d, which run as others do", *inputs[1].shape)

    def run(self, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        """The module's outputs."""
        _infer(self._request, inputs)
        # Copied: the next run overwrites the program's own outputs, whose shapes only it knows beforehand.
        outputs = range(len(self._request.model_outputs))
        return tuple(_array(self._request.get_output_tensor(number)).copy() for number in outputs)

    def run_into(self, outputs: Sequence[np.ndarray], *inputs: np.ndarray) -> None:
        """Has the module write its outputs there, contiguous arrays of the right shapes."""
        fixed = self._fixed.get(tuple(array.shape for array in inputs))
        if fixed is not None:
            fixed.run_into(outputs, inputs)
            return
        for number, output in enumerate(outputs):
            self._request.set_output_tensor(number, _tensor(output))
        _infer(self._request, inputs)


class _Fixed:
    """A program of one shape, with arrays of its own: copying into and out of them takes less than sharing others."""

    def __init__(self, request: ov.InferRequest, inputs: Sequence[np.ndarray]) -> None:
        self._request = request
        self._inputs = [array.copy() for array in inputs]
        for number, array in enumerate(self._inputs):
            request.set_input_tensor(number, _tensor(array))
        # Tells the shapes of its outputs.
        request.infer()
        self._outputs = [
            _array(request.get_output_tensor(number)).copy() for number in range(len(request.model_outputs))
        ]
        for number, array in enumerate(self._outputs):
            request.set_output_tensor(number, _tensor(array))

    def run(self, *inputs: np.ndarray) -> Sequence[np.ndarray]:
        """The module's outputs, which the next run overwrites."""
        for own, array in zip(self._inputs, inputs, strict=True):
            own[...] = array
        self._request.infer()
        return self._outputs

    def run_into(self, outputs: Sequence[np.ndarray], inputs: Sequence[np.ndarray]) -> None:
        """As `Program.run_into`."""
        for output, own in zip(outputs, self.run(*inputs), strict=True):
            output[...] = own


class Compiler:
    """Compiles modules for as many threads as PyTorch has. `dtype` is the precision of their matrix products.

    States that programs take and leave are in `states`. Where those are bfloat16 so is what adds up within: OpenVINO
    keeps all in float32 from which no matrix product leads to an output that is.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self._quantizes = dtype == torch.int8
        self._core = ov.Core()
        rounds = dtype == torch.bfloat16 or (self._quantizes and has_bfloat16())
        self.states = torch.bfloat16 if rounds else torch.float32
        self._options: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "bf16" if rounds else "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": QUANTIZED_TOGETHER if self._quantizes else 0,
        }

    def compile(self, modules: Sequence[nn.Module], size: int) -> list[Program]:
        """Each of `modules`, of those here or in `pieces`, of hidden states of this size.

        While one is traced, those before it are compiled on the other cores. Raises `RevmuxError` where a compiled form
        computes something else.
        """
        with ThreadPoolExecutor() as pool:
            made = [
                pool.submit(Program, self._converted(module, size), partial(self._example_inputs, module, size))
                for module in modules
            ]
            programs = [program.result() for program in made]
        for module, program in zip(modules, programs, strict=True):
            self._check(module, program, size)
        return programs

    def _example_inputs(self, module: nn.Module, size: int, count: int, length: int) -> list[np.ndarray]:
        return self._inputs(module, _example(module, count, length, size))

    def _inputs(self, module: nn.Module, example: Sequence[Tensor]) -> list[np.ndarray]:
        """What `module` takes, as its program does."""
        states = self._states_of(module)
        return [to_numpy(tensor.to(states) if tensor.is_floating_point() else tensor) for tensor in example]

    def _check(self, module: nn.Module, program: Program, size: int) -> None:
        """Tracing takes what it cannot follow for a constant, so what it made is tried on sizes that it did not see."""
        example = _example(module, 3, 11, size)
        with torch.no_grad():
            outputs = module(*example)
        expected = [outputs] if isinstance(outputs, Tensor) else list(outputs)
        layers = len(module.layers) if isinstance(module, Layers | PackedEnd | TokenPath | CompositePath) else 1
        tolerance = min(TOLERANCE * layers, HIGHEST_TOLERANCE)
        mask = example[1] if isinstance(module, Layers | Multiplexing) else None
        inputs = self._inputs(module, example)
        found = [from_numpy(output).float() for output in program.run(*inputs)]
        if isinstance(module, PlainPath | ExitPath | CompositePath):
            # Logits that are wrong would be little beside what they are made from.
            found, expected = ([*read.tensor_split([size], dim=-1), *rest] for read, *rest in (found, expected))
        check_outputs("openvino", found, expected, mask, tolerance)
        if isinstance(module, PackedLayers | PackedEnd | TokenPath) and not _independent(program.run, inputs):
            raise RevmuxError("the backend openvino mixes up texts that share rows: use the backend torch")

    def _converted(self, module: nn.Module, size: int) -> Callable[[Shapes | None], ov.InferRequest]:
        """What compiles `module`."""
        example = _example(module, 2, 8, size)
        with torch.no_grad(), warnings.catch_warnings():
            # Tracing remarks on Python conditions in the model's mask code; `_check` sees to what comes of them.
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(module.eval(), example, check_trace=False)
        # Not `ov.convert_model`, which reports its use over the network.
        frontend = FrontEndManager().load_by_framework("pytorch")
        # Held, and with the program: neither the frontend nor the model keeps it alive.
        decoder = TorchScriptPythonDecoder(traced)
        model = frontend.convert(frontend.load(decoder))
        model.reshape({number: _shape(module, tensor) for number, tensor in enumerate(example)})
        if self._quantizes and isinstance(module, PackedLayers | PackedEnd | Mix):
            _quantize(model, "")
        elif self._quantizes and isinstance(module, TokenPath | CompositePath):
            _quantize(model, "layers.")
        return partial(self._compiled, self._with_states(model, module, example), decoder)

    def _states_of(self, module: nn.Module) -> torch.dtype:
        """The precision of the states that `module` takes and leaves."""
        return torch.float32 if isinstance(module, Multiplexing) else self.states

    def _with_states(self, model: ov.Model, module: nn.Module, example: tuple[Tensor, ...]) -> ov.Model:
        """`model` with inputs and outputs in the precision of states, but for what heads read and their logits."""
        if self._states_of(module) == torch.float32:
            return model
        ports = PrePostProcessor(model)
        for number, tensor in enumerate(example):
            if tensor.is_floating_point():
                ports.input(number).tensor().set_element_type(ov.Type.bf16)
        read = isinstance(module, PlainPath | ExitPath | CompositePath | Demultiplexing)
        for number in range(read, len(model.outputs)):
            ports.output(number).tensor().set_element_type(ov.Type.bf16)
        return ports.build()

    def _compiled(
        self, model: ov.Model, decoder: TorchScriptPythonDecoder, shapes: Shapes | None = None
    ) -> ov.InferRequest:
        """One of `model`, whose weights are those that `decoder` holds, for inputs of any shapes or of these."""
        if shapes is not None:
            model = model.clone()
            model.reshape({number: list(shape) for number, shape in enumerate(shapes)})
        return self._core.compile_model(model, "CPU", self._options).create_infer_request()


def _quantize(model: ov.Model, part: str) -> None:
    """Has the linear maps of `model`, of weights with `part` in their names, multiply in int8.

    Weights get 8 bits, a scale and a zero point for every output channel. `DYNAMIC_QUANTIZATION_GROUP_SIZE` has
    OpenVINO quantize the inputs too, as they come, so no data is needed beforehand. What that costs in agreement is
    measured when a bundle is calibrated.
    """
    for node in model.get_ordered_ops():
        if node.get_type_name() != "MatMul" or not node.get_attributes()["transpose_b"]:
            continue
        constant = node.input(1).get_source_output().get_node()
        if constant.get_type_name() != "Constant" or part not in constant.get_friendly_name():
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


def _example(module: nn.Module, count: int, length: int, size: int) -> tuple[Tensor, ...]:
    """What `module` takes, of `count` composites, or rows of as many texts."""
    if isinstance(module, TokenPath):
        return module.example(count, length)
    if isinstance(module, CompositePath):
        return module.example(count, length, size)
    width = module.multiplexer.width if isinstance(module, Adapter) else 1
    hidden, mask = example_states(count * width, length, size)
    if isinstance(module, Mix):
        flat = hidden.flatten(0, 1)
        return flat, torch.arange(count * width).reshape(count, width) * 7 % len(flat)
    if isinstance(module, Shortcut):
        segments = (torch.arange(length) * count // length + 1).expand(len(hidden), length).contiguous()
        return hidden, segments, hidden[:, :count].contiguous()
    if isinstance(module, Demultiplexing):
        own = module.multiplexer.shortcut(hidden, mask, hidden[:, 0]).detach()
        return hidden[:count, :1].contiguous(), own, mask[:, :1].contiguous()
    if isinstance(module, PackedLayers | PackedEnd):
        segments, at = _example_rows(count, length)
        return (hidden, segments, at) if isinstance(module, PackedEnd) else (hidden, segments)
    return hidden, mask


def _shape(module: nn.Module, tensor: Tensor) -> ov.PartialShape:
    """The shape of an input of `module` like `tensor`: as many states of the same size, or tokens of as many parts, as
    come."""
    fixed = tensor.is_floating_point() or isinstance(module, Mix) or tensor.ndim == 3
    return ov.PartialShape([-1] * (tensor.ndim - 1) + [tensor.shape[-1] if fixed else -1])


def _independent(run: Callable[..., Sequence[np.ndarray]], inputs: Sequence[np.ndarray]) -> bool:
    """Whether what a program of rows makes of their first texts stays as it is when all else in the rows changes."""
    content, segments, *at = inputs
    others = np.where((segments == 1)[..., None], content, content[:, ::-1])
    own = (np.take_along_axis(segments, at[0], axis=1) if at else segments) == 1
    found, expected = (from_numpy(run(each, segments, *at)[0][own]).float() for each in (others, content))
    return bool((found - expected).norm() <= INDEPENDENCE * expected.norm())


def _with_open_places(inputs: Sequence[np.ndarray]) -> Shapes:
    """Shapes of the inputs of a program of rows, with any number of places for texts.

    Where there are as many places as heads, and OpenVINO knows both, its attention in bfloat16 takes one for the other,
    and texts read what stands beside them (2026.4.1 with AVX-512; `docs/performance/latency.md`).
    """
    content, segments, *at = (array.shape for array in inputs)
    return content, segments, *((rows, -1) for rows, _ in at)


def _infer(request: ov.InferRequest, inputs: tuple[np.ndarray, ...]) -> None:
    # Held until they were read: sharing does not keep them alive.
    held = [np.ascontiguousarray(array) for array in inputs]
    for number, array in enumerate(held):
        request.set_input_tensor(number, _tensor(array))
    request.infer()


def _kind(port: ov.ConstOutput) -> np.dtype:
    """What NumPy holds there."""
    return BFLOAT16 if port.element_type == ov.Type.bf16 else np.dtype(port.element_type.to_dtype())


def _tensor(array: np.ndarray) -> ov.Tensor:
    """What shares the memory of `array`."""
    if array.dtype == BFLOAT16:
        return ov.Tensor(array, list(array.shape), ov.Type.bf16)
    return ov.Tensor(array, shared_memory=True)


def _array(tensor: ov.Tensor) -> np.ndarray:
    """What shares the memory of `tensor`."""
    # OpenVINO has NumPy take bfloat16 for float16.
    return tensor.data.view(BFLOAT16) if tensor.element_type == ov.Type.bf16 else tensor.data


def to_numpy(tensor: Tensor) -> np.ndarray:
    """The array that programs take for a tensor, whose memory it shares."""
    return tensor.view(torch.uint16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()


def from_numpy(array: np.ndarray) -> Tensor:
    """The tensor that an array of a program's is, whose memory it shares."""
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if array.dtype == BFLOAT16 else tensor
