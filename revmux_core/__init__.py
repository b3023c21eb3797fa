"""Reversible multiplexing of text classifiers: load a bundle, classify texts.

import revmux_core
bundle = revmux_core.load("sst2-minilm")
bundle.classify(["a gripping film", "a waste of time"])
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from revmux_core.bundle import load_bundle as load

__all__ = ["load"]


def __getattr__(name: str) -> object:
    # Deferred, so that pure modules (points, plan) can be imported without torch.
    if name == "load":
        from revmux_core.bundle import load_bundle

        return load_bundle
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
