"""Views of frozen models as embeddings, layers that run from `lo` to `hi`, pooling and head."""

from revmux_core.backbones.base import Backbone, UnsupportedModelError, view

__all__ = ["Backbone", "UnsupportedModelError", "view"]
