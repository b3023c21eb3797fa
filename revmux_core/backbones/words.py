"""What language models have in place of a classification head: label words, and a soft prompt.

`LABEL_WORDS` is where a model's configuration keeps the token of every label, in the order of the labels; `PROMPT` is
the parameter of a model that holds its soft prompt `[P, d]`. Token ids from the end of the vocabulary on, V to
V + P - 1, stand for the prompt's embeddings, so a prompt is as much a part of a text as its special tokens are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from revmux_core.backbones.base import UnsupportedModelError
from revmux_core.batch import move
from revmux_core.problems import Problem, SingleLabel

LABEL_WORDS = "label_word_ids"
PROMPT = "soft_prompt"


def label_words(model: PreTrainedModel) -> list[int]:
    """Token ids of the labels' words. Raises `UnsupportedModelError` for a model that was given fewer than two."""
    ids = getattr(model.config, LABEL_WORDS, None) or []
    if len(ids) < 2:
        raise UnsupportedModelError(f"{type(model).__name__} classifies by label words: it needs at least two of them")
    return list(ids)


def words_problem(model: PreTrainedModel) -> Problem:
    """One label out of those that have words. Raises `UnsupportedModelError` as `label_words` does."""
    config: Any = model.config
    return SingleLabel(tuple(str(config.id2label.get(index, index)) for index in range(len(label_words(model)))))


def score_words(model: PreTrainedModel, states: Tensor) -> Tensor:
    """Logits `[S, C]` of the label words alone, from the states `[S, d]` that the language model head reads."""
    head: Any = model.get_output_embeddings()
    words = label_words(model)
    if head.weight.is_meta:
        # A sharded model's, and offloaded: only its own call fetches it.
        return head(states)[:, words]
    device = head.weight.device
    # Not indexed by the list: a GPU would be waited for until that is there.
    rows = head.weight.index_select(0, move(torch.tensor(words), device))
    return F.linear(states.to(device), rows)


def set_prompt(model: PreTrainedModel, prompt: Tensor) -> None:
    """Gives `model` the soft prompt `[P, d]`, frozen. It moves with the model, to other devices and precisions."""
    model.register_parameter(PROMPT, nn.Parameter(prompt, requires_grad=False))


def prompt_ids(model: PreTrainedModel, count: int) -> Sequence[int]:
    """The token ids that stand for a soft prompt of `count` embeddings."""
    table: Any = model.get_input_embeddings()
    return range(table.num_embeddings, table.num_embeddings + count)


def embed(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Word embeddings `[S, T, d]` of ids `[S, T]`, and those of the soft prompt where ids stand for it."""
    table: Any = model.get_input_embeddings()
    prompt: Tensor | None = getattr(model, PROMPT, None)
    if prompt is None:
        return table(ids)
    size = table.num_embeddings
    virtual = F.embedding((ids - size).clamp(min=0), prompt)
    return torch.where((ids >= size).unsqueeze(-1), virtual, table(ids.clamp(max=size - 1)))
