"""How a frozen language model is made a classifier: a word for every label, and a soft prompt that is learnt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from revmux_core.backbones import Backbone
from revmux_core.backbones.words import PROMPT, set_prompt
from revmux_core.batch import pad
from revmux_core.errors import RevmuxError
from revmux_core.plan import Tokens
from revmux_core.problems import is_labelled
from revmux_core.tokenization import Tokenizer
from revmux_core.training.loop import Schedule, train_loop
from revmux_core.training.losses import labelled_loss

# How many of the commonest words a prompt may begin as, as in Lester et al. 2021.
_COMMON = 5000


def verbalize(tokenizer: PreTrainedTokenizerBase, labels: Sequence[str], words: Mapping[str, str]) -> dict[str, int]:
    """The token of every label's word: that of `words`, or the label's own name.

    A word follows a text, so it is looked up with a space in front of it first. Raises `RevmuxError` for a word that is
    no single token of the model's, for two labels of one word, and for a label in `words` that there is not.
    """
    unknown = sorted(words.keys() - {*labels})
    if unknown:
        raise RevmuxError(f"--label-word {unknown[0]}=...: the labels are {', '.join(labels)}")
    verbalizer: dict[str, int] = {}
    for label in labels:
        word = words.get(label, label)
        for form in (f" {word}", word):
            ids = tokenizer.backend_tokenizer.encode(form, add_special_tokens=False).ids
            if len(ids) == 1 and ids[0] != tokenizer.unk_token_id:
                break
        else:
            raise RevmuxError(
                f"the word {word} of label {label} is no single token of this model: choose another with "
                f"--label-word {label}=WORD"
            )
        if ids[0] in verbalizer.values():
            raise RevmuxError(f"two labels have the word {word}: choose another with --label-word {label}=WORD")
        verbalizer[label] = ids[0]
    return verbalizer


def train_prompt(
    backbone: Backbone,
    length: int,
    samples: Sequence[Tokens],
    labels: np.ndarray,
    schedule: Schedule,
    folder: Path,
    tokenizer: Tokenizer,
    seed: int,
    device: torch.device,
    precision: str,
) -> tuple[Tensor, float]:
    """Gives the frozen model a soft prompt of `length` embeddings (Lester et al. 2021, arXiv 2104.08691) and trains it.

    `samples` begin with the ids that stand for it; those without a label are left out. The prompt begins as
    common words of the samples. The learning rate is in units of the word embeddings' root mean square, which is 0.02
    in some models and 10 in others.

    Returns the prompt `[length, d]`, which the model keeps, and the seconds it took.
    """
    table: Any = backbone.model.get_input_embeddings()
    counts = Counter(index for sample in samples for index in sample.ids[length:])
    common = [index for index, _ in counts.most_common(_COMMON) if index not in tokenizer.special_ids]
    chosen = np.random.default_rng(seed).choice(common, length, replace=len(common) < length)
    initial = table.weight[torch.from_numpy(chosen).to(device)].detach().float()
    set_prompt(backbone.model, initial.clone())
    prompt = backbone.model.get_parameter(PROMPT)
    prompt.requires_grad_(True)
    schedule = replace(schedule, learning_rate=schedule.learning_rate * float(initial.square().mean().sqrt()))
    targets = torch.from_numpy(labels)
    labelled = np.flatnonzero(is_labelled(labels)).tolist()

    def loss_function(positions: list[int]) -> tuple[Tensor, dict[str, float]]:
        indices = [labelled[position] for position in positions]
        ids, mask, type_ids = pad([samples[i] for i in indices], tokenizer.pad_id, backbone.padding_side)
        ids, mask = ids.to(device), mask.to(device)
        hidden = backbone.embed(ids, mask, None if type_ids is None else type_ids.to(device))
        hidden = backbone.run(hidden, mask, backbone.layers(0, backbone.num_layers))
        logits = backbone.head(backbone.pool(hidden, torch.arange(len(ids), device=device), mask)).float()
        truth = targets[indices].to(device)
        accuracy = float((logits.argmax(dim=-1) == truth).float().mean())
        return labelled_loss(backbone.problem, logits, truth), {"accuracy": accuracy}

    lengths = [len(samples[i]) for i in labelled]
    seconds = train_loop("prompt", {PROMPT: prompt}, loss_function, lengths, schedule, folder, seed, device, precision)
    prompt.requires_grad_(False)
    return prompt, seconds
