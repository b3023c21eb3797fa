"""Operating points: the unit that is trained, measured, planned and served."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from revmux_core.errors import RevmuxError

MIN_AGREEMENT = 0.95
"""Measured agreement with the plain path from which on a point is used without being asked for by name."""

_NAME = re.compile(r"n(\d{1,4})-l(\d{1,4})(?:-u(\d{1,4}(?:\.\d{1,4})*))?")


@dataclass(frozen=True, slots=True, order=True)
class OperatingPoint:
    """How a sample travels through the backbone.

    `width` samples share one composite (N of the paper) after `prefill` layers (l) were run on each alone; the layers
    in `upper` then run once for all of them. Plain inference is the point with width 1 whose prefill is every layer; a
    point of width 1 that stops below the top is an early exit.

    Raises `ValueError` for a width below 1, a negative prefill, upper layers that are not ascending and above the
    prefill, or no layer at all.
    """

    width: int
    prefill: int
    upper: tuple[int, ...]
    name: str = field(init=False, repr=False, compare=False)
    """A file-system friendly name: `n2-l3-u3.4.5` is width 2, prefill 3, upper layers 3, 4 and 5."""

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"width must be at least 1, got {self.width}")
        if self.prefill < 0:
            raise ValueError(f"prefill must be at least 0, got {self.prefill}")
        if list(self.upper) != sorted(set(self.upper)) or any(layer < self.prefill for layer in self.upper):
            raise ValueError(f"upper layers must ascend from the prefill depth {self.prefill}, got {self.upper}")
        if not self.prefill and not self.upper:
            raise ValueError("a point must run at least one layer")
        upper = ".".join(map(str, self.upper))
        # Once and not whenever it is asked for: every answer is sent with it.
        object.__setattr__(self, "name", f"n{self.width}-l{self.prefill}" + (f"-u{upper}" if upper else ""))

    @classmethod
    def plain(cls, num_layers: int) -> OperatingPoint:
        """The untouched model: width 1, every layer run on every sample alone."""
        return cls(width=1, prefill=num_layers, upper=())

    @classmethod
    def mux(cls, width: int, prefill: int, num_layers: int) -> OperatingPoint:
        """The paper's point: `width` samples share all layers from `prefill` to the top.

        Raises `RevmuxError` for a prefill that leaves no layer to share.
        """
        if not 0 <= prefill < num_layers:
            raise RevmuxError(f"prefill must be from 0 to {num_layers - 1} for a model of {num_layers} layers")
        return cls(width=width, prefill=prefill, upper=tuple(range(prefill, num_layers)))

    @classmethod
    def parse(cls, name: str) -> OperatingPoint:
        """The point that has this `name`. Raises `RevmuxError` for a text that names none."""
        match = _NAME.fullmatch(name)
        if match is None:
            raise RevmuxError(f"{name} names no operating point: n2-l3-u3.4.5 is width 2, prefill 3, layers 3, 4 and 5")
        width, prefill, upper = match.groups()
        try:
            return cls(int(width), int(prefill), tuple(map(int, upper.split("."))) if upper else ())
        except ValueError as error:
            raise RevmuxError(f"{name} names no operating point: {error}") from error

    def kind(self, num_layers: int) -> str:
        """`multiplexed`, `early exit` or `plain`, in a model of `num_layers` layers."""
        if self.width > 1:
            return "multiplexed"
        return "plain" if self == OperatingPoint.plain(num_layers) else "early exit"

    def runs(self, layer: int) -> bool:
        """Whether samples of this point pass through `layer`, alone or in a composite."""
        return layer < self.prefill or layer in self.upper

    def seams(self, num_layers: int) -> set[int]:
        """The layers before which its samples multiplex, or begin or stop to run; where its prefill ends among them."""
        changes = {layer for layer in range(1, num_layers) if self.runs(layer) != self.runs(layer - 1)}
        return changes | {self.prefill}

    def ideal_cost(self, num_layers: int, last_layer: float = 1.0) -> float:
        """Layer compute per sample as a share of plain inference: `(l + |upper| / N) / L` (arXiv 2410.04519).

        `last_layer` is what the last layer costs in units of the others (`Backbone.last_layer`). What is planned,
        cascades and experiments count all alike.
        """
        more = last_layer - 1
        alone, shared = (more if self.prefill == num_layers else 0), (more if num_layers - 1 in self.upper else 0)
        return (self.prefill + alone + (len(self.upper) + shared) / self.width) / (num_layers + more)

    def ideal_speedup(self, num_layers: int, last_layer: float = 1.0) -> float:
        """Plain layer compute over this point's; adapters and host work are not counted, so it is a ceiling."""
        return 1.0 / self.ideal_cost(num_layers, last_layer)
