"""The exported classifier as a module of three inputs, as converters want it."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification

INPUTS = ("ids", "mask", "types")


class PlainModel(torch.nn.Module):
    """(ids, mask, types), each batch x tokens, int64, to logits, batch x labels."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.model = AutoModelForSequenceClassification.from_pretrained(folder).eval()

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, types: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(input_ids=ids, attention_mask=mask, token_type_ids=types).logits
        return logits


def example() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Inputs that a conversion can trace: more than one row and token, so that no size is taken for a constant."""
    ids = torch.full((3, 17), 1012)
    return ids, torch.ones_like(ids), torch.zeros_like(ids)
