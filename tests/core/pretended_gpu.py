"""Runs bundles on a GPU that is only pretended: `python -m tests.core.pretended_gpu BACKEND FOLDER...`.

Its tensors have shapes and a device, and no values (PyTorch's `FakeTensorMode`). So what mixes tensors of two devices
raises, and so does what a GPU would be waited for: a value that the host asks for, and a copy from the host but by
`revmux_core.batch.move`. It is a process of its own, as PyTorch keeps such a device for good.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from revmux_core.backends import inductor
from revmux_core.backends.graphs import GRAPH_TOKENS
from revmux_core.backends.inductor import InductorExecutor
from revmux_core.backends.pieces import example_states
from revmux_core.batch import collate
from revmux_core.bundle import Bundle, load_bundle
from revmux_core.plan import Group, MuxPlan
from revmux_core.states import Padded

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
    """The same around states whose lengths are known, and are not asked for."""

    def _example(self, rows: int) -> Padded:
        with unset_fake_temporarily():
            hidden, mask = example_states(rows, 11, self._backbone.hidden_size)
            lengths = tuple(mask.sum(dim=1).tolist())
        hidden, mask = torch.empty_like(hidden, dtype=self._dtype), torch.empty_like(mask)
        states = (tensor.to(self._device, non_blocking=True) for tensor in (hidden, mask))
        return Padded(*states, self._backbone.padding_side, lengths)


def capture(call: Callable[[], None]) -> Callable[[], None]:
    """A recording that is the call itself."""
    call()
    return call


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
    # Values, which there are none of, are not compared. What is made of a program's operations is PyTorch's affair.
    inductor.check_outputs = lambda *_: None  # type: ignore[assignment]
    torch.compile = partial(torch.compile, backend="eager")  # type: ignore[assignment]
    for bundle in bundles:
        with Pretended(allow_non_fake_inputs=True):
            bundle.classifier.to_empty(device=torch.device(NAME, 0))
            if backend == "inductor":
                bundle.classifier.executor = Executor(bundle.classifier, capture)
                bundle.classifier.executor.limit(bundle.classifier.points)
            run(bundle, torch.device(NAME, 0))


if __name__ == "__main__":
    main()
