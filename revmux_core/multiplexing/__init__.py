"""Multiplexers: how N samples become one composite, and one composite's output N answers."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from revmux_core.errors import RevmuxError
from revmux_core.multiplexing.base import Multiplexer
from revmux_core.multiplexing.datamux import DataMuxMultiplexer
from revmux_core.multiplexing.earlyexit import EarlyExit
from revmux_core.multiplexing.muxplm import MuxPlmMultiplexer
from revmux_core.multiplexing.published import OneWayMultiplexer, PublishedMultiplexer, VanillaAdapterMultiplexer
from revmux_core.multiplexing.reversible import ReversibleMultiplexer
from revmux_core.multiplexing.tokenpool import TokenPoolMultiplexer

__all__ = [
    "DEFAULT_METHOD",
    "EARLY_EXIT",
    "METHODS",
    "Multiplexer",
    "load_multiplexer",
    "make_multiplexer",
    "method_at",
    "method_of",
]

DEFAULT_METHOD, EARLY_EXIT = "revmux", "early-exit"

METHODS: dict[str, type[Multiplexer]] = {
    DEFAULT_METHOD: ReversibleMultiplexer,
    "revmux-published": PublishedMultiplexer,
    "one-way": OneWayMultiplexer,
    "vanilla-adapter": VanillaAdapterMultiplexer,
    "datamux": DataMuxMultiplexer,
    "mux-plm": MuxPlmMultiplexer,
    "token-pool": TokenPoolMultiplexer,
    EARLY_EXIT: EarlyExit,
}


def make_multiplexer(method: str, width: int, hidden_size: int) -> Multiplexer:
    """An untrained multiplexer. Raises `RevmuxError` for an unknown method or a width that does not fit."""
    return _kind(method)(width, hidden_size)


def load_multiplexer(method: str, width: int, hidden_size: int, weights: Mapping[str, Tensor]) -> Multiplexer:
    """A trained one. Raises as `make_multiplexer` does, and `RuntimeError` for weights of another."""
    multiplexer = _kind(method).like(width, hidden_size, weights)
    multiplexer.load_state_dict(weights)
    return multiplexer


def _kind(method: str) -> type[Multiplexer]:
    if method not in METHODS:
        raise RevmuxError(f"there is no method {method}: use one of {', '.join(METHODS)}")
    return METHODS[method]


def method_at(width: int, method: str = DEFAULT_METHOD) -> str:
    """What a point of `width` is made by where `method` was asked for: alone, a text can only exit early."""
    return EARLY_EXIT if width == 1 else method


def method_of(multiplexer: Multiplexer) -> str:
    """The name by which `make_multiplexer` makes such a multiplexer."""
    return next(name for name, kind in METHODS.items() if type(multiplexer) is kind)
