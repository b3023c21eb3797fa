"""Encoder-decoders that score label words at the decoder's first step: T5, Flan-T5, mT5."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask

from revmux_core.backbones.base import UnsupportedModelError, linear_maps, prune
from revmux_core.backbones.words import embed, score_words, words_problem

FAMILIES = ("mt5", "t5")


class DecoderStep(nn.Module):
    """The decoder's first step, from its start token, over what the encoder's layers made of a text.

    All its layers together count as one layer of the backbone. Beside their one position they project every encoder
    state to keys and values, 2 d^2 multiplications a layer and token where an encoder layer has 12 d^2: the decoder
    of T5-small (6 layers) costs as much as one encoder layer, that of T5-large (24) as much as four (`cost`).
    """

    def __init__(self, encoder: Any, decoder: Any) -> None:
        super().__init__()
        self.config = decoder.config
        self.encoder_norm = encoder.final_layer_norm
        self.blocks = decoder.block
        self.norm = decoder.final_layer_norm

    def cost(self, layer: nn.Module) -> float:
        """What it costs for a token of a text, in units of an encoder layer; its own position is not counted."""
        projections = [getattr(block.layer[1].EncDecAttention, name) for block in self.blocks for name in "kv"]
        per_token = sum(projection.weight.numel() for projection in projections)
        return per_token / sum(module.weight.numel() for module in layer.modules() if isinstance(module, nn.Linear))

    def forward(self, hidden: Tensor, mask: Tensor, start: Tensor) -> Tensor:
        """Encoder states `[R, T, d]`, their `mask` `[R, T]` and the start embeddings `[R, 1, d]` to `[R, 1, d]`."""
        encoded = self.encoder_norm(hidden)
        # By position: Transformers 5.24 gave the cache, which there is none of, another name.
        causal = create_causal_mask(self.config, start, None, None)
        cross = create_bidirectional_mask(
            config=self.config, inputs_embeds=start, attention_mask=mask, encoder_hidden_states=encoded
        )
        state, bias, cross_bias = start, None, None
        for block in self.blocks:
            # Only the first block has a position bias of its own; it returns that for the others.
            state, bias, cross_bias = block(state, causal, bias, encoded, cross, cross_bias)
        return self.norm(state)


class T5Backbone:
    """`T5ForConditionalGeneration` and its kin: the encoder's layers and the one decoder step, label words as classes.

    After the decoder step all positions hold its output, so that hidden states keep their shape. `pool` reads the
    first position; of prefilled states that is the first token, or the soft prompt's first embedding. Logits are
    those of the whole model to rounding only: the head multiplies the label words' rows, not the whole vocabulary.

    Raises `UnsupportedModelError` for a model of the family without a language model head, or without label words.
    """

    padding_side = "right"
    packs = False

    def __init__(self, model: PreTrainedModel) -> None:
        config: Any = model.config
        if not type(model).__name__.endswith("ForConditionalGeneration"):
            raise UnsupportedModelError(
                f"{type(model).__name__} is not supported: of this family only models with a language model head are "
                "(...ForConditionalGeneration), which score label words"
            )
        self.problem = words_problem(model)
        self.model = model
        whole: Any = model
        self._encoder = whole.encoder
        self._start = config.decoder_start_token_id
        self._scale = config.d_model**-0.5 if getattr(config, "scale_decoder_outputs", False) else None
        self._step = DecoderStep(whole.encoder, whole.decoder)
        self.num_layers = len(self._encoder.block) + 1
        self.last_layer = self._step.cost(self._encoder.block[0])
        self.hidden_size = config.d_model
        # Positions are relative, so this is no hard limit, but the length of pre-training.
        self.max_tokens = getattr(config, "n_positions", 512)
        self.lora_targets = linear_maps(model, [*self._encoder.block, *whole.decoder.block])
        self.head_modules: list[str] = []

    def embed(self, ids: Tensor, mask: Tensor, type_ids: Tensor | None) -> Tensor:
        return embed(self.model, ids)

    def layers(self, lo: int, hi: int) -> Sequence[nn.Module]:
        return [*self._encoder.block, self._step][lo:hi]

    def run(self, hidden: Tensor, mask: Tensor, layers: Sequence[nn.Module]) -> Tensor:
        attention_mask = create_bidirectional_mask(
            config=self._encoder.config, inputs_embeds=hidden, attention_mask=mask
        )
        # Held by the first layer, used by all.
        attention = self._encoder.block[0].layer[0].SelfAttention
        bias = attention.compute_bias(hidden.shape[1], hidden.shape[1], device=hidden.device)
        if attention_mask is not None and not self._encoder._supports_sdpa:
            # Before Transformers 5.15 a layer that is given a bias takes the mask for a part of it.
            bias = bias + attention_mask
        for layer in layers:
            if isinstance(layer, DecoderStep):
                start = torch.full((hidden.shape[0], 1), self._start, device=hidden.device)
                hidden = layer(hidden, mask, embed(self.model, start)).expand(hidden.shape)
            else:
                hidden = layer(hidden, attention_mask, bias)[0]
        return hidden

    def pool(self, hidden: Tensor, rows: Tensor, mask: Tensor) -> Tensor:
        return hidden[rows, 0]

    def head(self, pooled: Tensor) -> Tensor:
        return score_words(self.model, pooled if self._scale is None else pooled * self._scale)

    def pruned(self, layers: Sequence[int]) -> PreTrainedModel:
        """Raises `UnsupportedModelError` without the first layer, which holds the position bias, or the decoder."""
        *kept, last = layers
        if last != self.num_layers - 1 or kept[:1] != [0]:
            raise UnsupportedModelError("a pruned T5 needs its first encoder layer and its decoder step")
        return prune(self.model, self._encoder.block, kept, {"num_layers": len(kept)})
