"""Decoder-only models that are read at a text's last token: Llama, Mistral, Qwen2, Qwen3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

from revmux_core.backbones.base import UnsupportedModelError, linear_maps, problem_of, prune
from revmux_core.backbones.words import embed, score_words, words_problem

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


class DecoderBackbone:
    """`...ForSequenceClassification`, or `...ForCausalLM` with label words as classes, of a decoder-only family.

    Padding is on the left, so that the last tokens of all samples of a composite share its last position. Positions
    count from each row's first token, as Hugging Face's generation has them; rotary embeddings only depend on their
    differences. Hidden states are the untouched model's bit for bit, logits to rounding: the head reads the last
    position and the label words' rows alone, where the model multiplies all positions and the whole vocabulary.

    Raises `UnsupportedModelError` for other heads.
    """

    padding_side = "left"
    packs = False
    last_layer = 1.0

    def __init__(self, model: PreTrainedModel) -> None:
        config: Any = model.config
        name = type(model).__name__
        self._by_words = name.endswith("ForCausalLM")
        if self._by_words:
            self.problem = words_problem(model)
        elif name.endswith("ForSequenceClassification"):
            self.problem = problem_of(config, name)
        else:
            raise UnsupportedModelError(
                f"{name} is not supported: of this family ...ForSequenceClassification and ...ForCausalLM are"
            )
        self.model = model
        self._decoder: Any = model.model
        self.num_layers = len(self._decoder.layers)
        self.hidden_size = config.hidden_size
        self.max_tokens = config.max_position_embeddings
        self.lora_targets = linear_maps(model, self._decoder.layers)
        self.head_modules = [] if self._by_words else ["score"]

    def embed(self, ids: Tensor, mask: Tensor, type_ids: Tensor | None) -> Tensor:
        return embed(self.model, ids)

    def layers(self, lo: int, hi: int) -> Sequence[nn.Module]:
        return list(self._decoder.layers[lo:hi])

    def run(self, hidden: Tensor, mask: Tensor, layers: Sequence[nn.Module]) -> Tensor:
        positions = (mask.cumsum(dim=-1) - 1).clamp(min=0)
        rotary = self._decoder.rotary_emb(hidden, position_ids=positions)
        makers = {False: create_causal_mask, True: create_sliding_window_causal_mask}
        masks = {
            # By position: Transformers 5.24 gave the cache, which there is none of, another name.
            sliding: makers[sliding](self._decoder.config, hidden, mask, None, position_ids=positions)
            for sliding in {self._is_sliding(layer) for layer in layers}
        }
        for layer in layers:
            hidden = layer(
                hidden,
                attention_mask=masks[self._is_sliding(layer)],
                position_ids=positions,
                position_embeddings=rotary,
            )
        return hidden

    def _is_sliding(self, layer: Any) -> bool:
        """Whether a layer attends to a window only: one and all in Mistral, by the layer in Qwen."""
        if self._decoder.config.model_type == "mistral":
            return self._decoder.config.sliding_window is not None
        return getattr(layer.self_attn, "sliding_window", None) is not None

    def pool(self, hidden: Tensor, rows: Tensor, mask: Tensor) -> Tensor:
        return hidden[rows, -1]

    def head(self, pooled: Tensor) -> Tensor:
        states = self._decoder.norm(pooled)
        if self._by_words:
            return score_words(self.model, states)
        model: Any = self.model
        return model.score(states)

    def pruned(self, layers: Sequence[int]) -> PreTrainedModel:
        config: Any = self.model.config
        changes: dict[str, Any] = {"num_hidden_layers": len(layers)}
        if getattr(config, "layer_types", None) is not None:
            changes["layer_types"] = [config.layer_types[layer] for layer in layers]
        return prune(self.model, self._decoder.layers, layers, changes)
