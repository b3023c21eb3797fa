"""Random weights of well-known sizes: counted right, and runnable at every width."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertForSequenceClassification, BertModel, LlamaForCausalLM, T5ForConditionalGeneration

from revmux_core.backbones import view
from revmux_core.backends import BackendName
from revmux_core.benchmark import Load, measure_speed
from revmux_core.errors import RevmuxError
from revmux_core.points import OperatingPoint
from revmux_core.shapes import SHAPES, Shape, matrix_rate, random_classifier, random_tokens, shape_of


@pytest.mark.parametrize(
    ("name", "millions"), [("minilm-l6", 10.6), ("bert-base", 84.9), ("bert-large", 302.0), ("llama3-8b", 6979)]
)
def test_a_token_costs_two_operations_a_weight(name: str, millions: float) -> None:
    """As many weights as the papers give these models without their embeddings."""
    assert SHAPES[name].flops_per_token(0) == pytest.approx(2e6 * millions, rel=0.01)


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_have_as_many_weights_as_their_models(name: str) -> None:
    shape = SHAPES[name]
    kind = {"bert": BertModel, "t5": T5ForConditionalGeneration, "llama": LlamaForCausalLM}[shape.family]
    with torch.device("meta"):
        model = kind(shape.config())
    assert shape.weights == pytest.approx(model.num_parameters(), rel=0.02)


@pytest.mark.parametrize(("name", "layers"), [("t5-small", 1), ("t5-base", 2), ("t5-large", 4), ("bert-base", 1)])
def test_a_decoder_step_counts_for_the_layers_that_it_costs_as_much_as(name: str, layers: float) -> None:
    shape = SHAPES[name]
    config = shape.config()
    config.label_word_ids = [1, 2]
    with torch.device("meta"):
        kind = T5ForConditionalGeneration if shape.family == "t5" else BertForSequenceClassification
        assert view(kind(config)).last_layer == layers


@given(width=st.integers(2, 8), prefill=st.integers(0, 5), last=st.floats(0.1, 10))
def test_the_ideal_is_that_of_the_layers_costs(width: int, prefill: int, last: float) -> None:
    point, plain = OperatingPoint.mux(width, prefill, 6), OperatingPoint.plain(6)
    costs = [1.0] * 5 + [last]
    expected = (sum(costs[:prefill]) + sum(costs[prefill:]) / width) / sum(costs)
    assert point.ideal_cost(6, last) == pytest.approx(expected)
    assert OperatingPoint(1, prefill + 1, ()).ideal_cost(6, last) == pytest.approx(
        sum(costs[: prefill + 1]) / sum(costs)
    )
    assert plain.ideal_cost(6, last) == pytest.approx(1)


SMALL = [Shape(2, 64, 2, 128), Shape(3, 64, 2, 128, "t5"), Shape(4, 64, 4, 128, "llama", key_value_heads=2)]


@pytest.mark.parametrize(("shape", "backend"), [*((shape, "torch") for shape in SMALL), (SMALL[0], "openvino")])
def test_every_width_of_a_shape_is_measured(shape: Shape, backend: BackendName) -> None:
    half = shape.num_layers // 2
    classifier = random_classifier(shape, [2, 4], half, torch.device("cpu"), torch.float32, backend)
    [speeds] = measure_speed([Load(classifier, random_tokens(8, 16), 0, 128)], classifier.points, 1)
    ideal = [1, 4 / 3, 1.6]
    if backend == "openvino":
        # Of the last of two layers a text's keys and values alone, a sixth.
        ideal = [1, 7 / (6 + 1 / 2), 7 / (6 + 1 / 4)]
    if shape.family == "t5":
        # Two of 3.75 layers alone: the decoder's three project 2 d^2 each, an encoder layer has 8 d^2.
        ideal = [1, 3.75 / (2 + 1.75 / 2), 3.75 / (2 + 1.75 / 4)]
    assert [speed.width for speed in speeds] == [1, 2, 4]
    assert [speed.ideal_speedup for speed in speeds] == pytest.approx(ideal)
    assert matrix_rate(torch.device("cpu"), torch.float32) > 0


def test_weights_that_do_not_fit_in_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("revmux_core.shapes.memory_bytes", lambda device: 10**9)
    with pytest.raises(RevmuxError, match=r"take 16\.1 GB in bfloat16, the cpu has 1\.0 GB: choose a smaller"):
        random_classifier(SHAPES["llama3-8b"], [2], 16, torch.device("cpu"), torch.bfloat16)


def test_an_unknown_shape_names_those_there_are() -> None:
    with pytest.raises(RevmuxError, match="bert-base"):
        shape_of("bert-huge")
