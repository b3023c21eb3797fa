"""Runs bundles on a GPU that is only pretended: `python -m tests.core.pretended_gpu BACKEND FOLDER...`.

Its tensors have shapes and a device, and no values (PyTorch's `FakeTensorMode`). So what mixes tensors of two devices
raises, and so does what a GPU would be waited for: a value that the host asks for, and a copy from the host but by
`revmux_core.batch.move`. It is a process of its own, as PyTorch keeps such a device for good.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from revmux_core.backends import inductor
from revmux_core.backends.graphs import GRAPH_TOKENS
from revmux_core.backends.inductor import InductorExecutor
from revmux_core.batch import collate
from revmux_core.bundle import Bundle, load_bundle
from revmux_core.plan import Group, MuxPlan
from revmux_core.states import Padded
from tests.tiny import counting_capture

NAME = "pretended"


class Pretended(FakeTensorMode):
    """Of the copies from the host to the device those alone are made that nobody waits for."""

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        asked = kwargs or {}
        to = asked.get("device")
        if func is torch.ops.aten._to_copy.default and to is not None and to.type == NAME != args[0].device.type:
            assert asked.get("non_blocking"), "the GPU is waited for: let `move` copy this"
            like, dtype = args[0], asked.get("dtype") or args[0].dtype
            func, args, asked = torch.ops.aten.empty.memory_format, (like.shape,), {"dtype": dtype, "device": to}
        return super().__torch_dispatch__(func, types, args, asked)


class Executor(InductorExecutor):
    """The same, but for its random states, whose lengths are told on the host."""

    def _example(self, rows: int) -> Padded:
        device, self._device = self._device, torch.device("cpu")
        with unset_fake_temporarily():
            states = super()._example(rows)
        self._device = device
        hidden, mask = (torch.empty_like(made).to(device, non_blocking=True) for made in (states.hidden, states.mask))
        return replace(states, hidden=hidden, mask=mask)


def run(bundle: Bundle, device: torch.device) -> None:
    """Answers a small batch of every point, and a large one, and goes on to the plain path from where each stands."""
    classifier, tokenizer = bundle.classifier, bundle.tokenizer
    words = tokenizer([("a good film" + " is very bad" * number, None) for number in range(8)])

    def answer(samples: Sequence[Any], group: Group) -> Any:
        batch = collate(samples, MuxPlan((group,)), tokenizer.pad_id, classifier.backbone.padding_side)
        outcome = classifier(batch.to(device))
        assert {outcome.logits.device, outcome.pooled.device, outcome.confidences.device} == {device}
        return outcome

    for point in classifier.points:
        for count in (2 * point.width, GRAPH_TOKENS // 8):
            members = tuple(range(count))
            outcome = answer((words * count)[:count], Group(point, members))
            for group in outcome.states:
                states = [outcome.standing(group, member) for member in members]
                answer(states, Group(classifier.plain, members, point.prefill))


def main() -> None:
    backend, *folders = sys.argv[1:]
    bundles = [load_bundle(Path(folder), dtype=torch.bfloat16) for folder in folders]
    _setup_privateuseone_for_python_backend(NAME)
    for bundle in bundles:
        # Without values there is nothing to compare (`test_inductor` does), and what a program's operations become is
        # PyTorch's affair.
        with (
            patch.object(inductor, "check_outputs"),
            patch.object(torch, "compile", partial(torch.compile, backend="eager")),
            Pretended(allow_non_fake_inputs=True),
        ):
            bundle.classifier.to_empty(device=torch.device(NAME, 0))
            if backend == "inductor":
                bundle.classifier.executor = Executor(bundle.classifier, counting_capture()[0])
                bundle.classifier.executor.limit(bundle.classifier.points)
            run(bundle, torch.device(NAME, 0))


if __name__ == "__main__":
    main()
