"""Views of frozen models as embeddings, layers that run from `lo` to `hi`, pooling and head."""

from revmux_core.backbones.base import Backbone, PackingBackbone, UnsupportedModelError, view

__all__ = ["Backbone", "PackingBackbone", "UnsupportedModelError", "view"]
