"""Multiplexers: how N samples become one composite, and one composite's output N answers."""

from revmux_core.multiplexing.base import Multiplexer
from revmux_core.multiplexing.reversible import ReversibleMultiplexer

__all__ = ["Multiplexer", "ReversibleMultiplexer"]
