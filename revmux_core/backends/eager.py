"""PyTorch as it is: the reference that every other backend is held to."""

from __future__ import annotations

from collections.abc import Collection

from revmux_core.backends import BackendName
from revmux_core.backends.padded import PaddedExecutor
from revmux_core.points import OperatingPoint


class EagerExecutor(PaddedExecutor):
    """Calls the model's own modules, so that the plain path is the untouched model bit for bit."""

    backend: BackendName = "torch"

    @property
    def precision(self) -> str:
        return str(self._backbone.model.dtype).removeprefix("torch.")

    def limit(self, points: Collection[OperatingPoint]) -> None:
        pass
