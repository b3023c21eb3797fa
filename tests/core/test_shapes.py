"""Random weights of well-known sizes: counted right, and runnable at every width."""

from __future__ import annotations

import pytest
import torch

from revmux_core.benchmark import Load, measure_speed
from revmux_core.errors import RevmuxError
from revmux_core.shapes import SHAPES, Shape, matrix_rate, random_classifier, random_tokens, shape_of


@pytest.mark.parametrize(("name", "millions"), [("minilm-l6", 10.6), ("bert-base", 84.9), ("bert-large", 302.0)])
def test_a_token_costs_two_operations_a_weight(name: str, millions: float) -> None:
    """As many weights as the papers give these models without their embeddings."""
    assert SHAPES[name].flops_per_token(0) == pytest.approx(2e6 * millions, rel=0.01)


@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_every_width_of_a_shape_is_measured(backend: str) -> None:
    small = Shape(2, 64, 2, 128)
    classifier = random_classifier(small, [2, 4], 1, torch.device("cpu"), torch.float32, backend)
    [speeds] = measure_speed([Load(classifier, random_tokens(8, 16), 0, 128)], classifier.points, 1)
    assert [(speed.width, speed.ideal_speedup) for speed in speeds] == [(1, 1), (2, 4 / 3), (4, 1.6)]
    assert matrix_rate(torch.device("cpu"), torch.float32) > 0


def test_an_unknown_shape_names_those_there_are() -> None:
    with pytest.raises(RevmuxError, match="bert-base"):
        shape_of("bert-huge")
