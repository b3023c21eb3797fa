"""Encoders with a classification head: BERT, MiniLM, RoBERTa, XLM-R, CamemBERT, ELECTRA, DistilBERT."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import PreTrainedModel
from transformers.masking_utils import create_bidirectional_mask

from revmux_core.backbones.base import UnsupportedModelError, linear_maps, problem_of, prune

# `model_type` of the configuration -> attribute of the classifier that holds the encoder. MiniLM checkpoints are BERT
# or XLM-R by their configuration.
FAMILIES = {
    "bert": "bert",
    "roberta": "roberta",
    "xlm-roberta": "roberta",
    "camembert": "roberta",
    "electra": "electra",
    "distilbert": "distilbert",
}


class EncoderBackbone:
    """`...ForSequenceClassification` or `...ForTokenClassification` of an encoder family, run layer by layer.

    It calls the model's own modules with the masks that the model itself would build, so running all layers gives
    bit for bit the logits of the untouched model on the same padded batch. Those of tokens are its own to rounding, and
    their states bit for bit: the head multiplies the words' positions alone, where the model's multiplies all.

    Raises `UnsupportedModelError` for a model without such a head.
    """

    padding_side = "right"
    packs = True
    last_layer = 1.0

    def __init__(self, model: PreTrainedModel) -> None:
        config: Any = model.config
        family = FAMILIES[config.model_type]
        if not hasattr(model, family) or not hasattr(model, "classifier"):
            raise UnsupportedModelError(
                f"{type(model).__name__} is not supported: bring a sequence or token classifier"
            )
        self.model = model
        self.problem = problem_of(config, type(model).__name__)
        # Families differ in what their modules are called with, which their common base class does not type.
        self._encoder: Any = getattr(model, family)
        self._family = config.model_type
        self._joined: tuple[Tensor, Tensor] | None = None
        self._segments: Any = getattr(self._encoder.embeddings, "token_type_embeddings", None)
        stack = self._encoder.transformer if family == "distilbert" else self._encoder.encoder
        self._layers = stack.layer
        self.num_layers = len(self._layers)
        self.hidden_size = config.hidden_size
        self.lora_targets = linear_maps(model, self._layers)
        names = {module: name for name, module in model.named_modules()}
        heads = [getattr(self._encoder, "pooler", None), getattr(model, "pre_classifier", None), model.classifier]
        self.head_modules = [names[module] for module in heads if module is not None]
        # RoBERTa counts positions from padding_idx + 1, so its table is longer than the texts it can hold.
        self._offset = config.pad_token_id + 1 if family == "roberta" else 0
        self.max_tokens = config.max_position_embeddings - self._offset

    def embed(self, ids: Tensor, mask: Tensor, type_ids: Tensor | None) -> Tensor:
        embeddings = self._encoder.embeddings
        return self._project(embeddings(ids) if self._segments is None else embeddings(ids, token_type_ids=type_ids))

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        table, begins = self.join_tables()
        rows = (tokens if self._segments is not None else tokens[..., ::2]) + begins
        summed = F.embedding_bag(rows.flatten(0, -2), table, mode="sum").unflatten(0, rows.shape[:-1])
        return self._project(self._encoder.embeddings.LayerNorm(summed))

    def join_tables(self) -> tuple[Tensor, Tensor]:
        if self._joined is not None:
            return self._joined
        embeddings = self._encoder.embeddings
        tables = [embeddings.word_embeddings, self._segments, embeddings.position_embeddings]
        tables = [table for table in tables if table is not None]
        sizes = [len(table.weight) for table in tables]
        # Ordinary tensors, as the model's are, although it may be a batch that comes here first.
        with torch.inference_mode(False):
            joined = torch.cat([table.weight for table in tables])
            for table, part in zip(tables, joined.split(sizes), strict=True):
                table.weight = nn.Parameter(part, requires_grad=False)
            begins = torch.tensor([0, *accumulate(sizes[:-1])])
            begins[-1] += self._offset
        self._joined = joined, begins
        return self._joined

    def _project(self, embedded: Tensor) -> Tensor:
        return self._encoder.embeddings_project(embedded) if hasattr(self._encoder, "embeddings_project") else embedded

    def layers(self, lo: int, hi: int) -> Sequence[nn.Module]:
        return list(self._layers[lo:hi])

    def run(self, hidden: Tensor, mask: Tensor, layers: Sequence[nn.Module]) -> Tensor:
        attention_mask = create_bidirectional_mask(
            config=self._encoder.config,
            inputs_embeds=hidden,
            attention_mask=mask.unsqueeze(1) if mask.ndim == 3 else mask,
        )
        for layer in layers:
            hidden = layer(hidden, attention_mask)
        return hidden

    def run_at(self, hidden: Tensor, at: Tensor, mask: Tensor, layer: nn.Module) -> Tensor:
        own = hidden.gather(1, at.unsqueeze(2).expand(-1, -1, hidden.shape[2]))

        def attend(*heads: Tensor) -> Tensor:
            query, key, value = (each.transpose(1, 2) for each in heads)
            return F.scaled_dot_product_attention(query, key, value, mask.unsqueeze(1)).transpose(1, 2)

        return self._run_layer(layer, own, hidden, attend)

    def run_unpadded(self, flat: Tensor, offsets: Tensor, longest: int, layers: Sequence[nn.Module]) -> Tensor:
        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return cast(Tensor, varlen_attn(query, key, value, offsets, offsets, longest, longest))

        for layer in layers:
            flat = self._run_layer(layer, flat, flat, attend)
        return flat

    def run_firsts(self, flat: Tensor, offsets: Tensor, longest: int, layer: nn.Module) -> Tensor:
        # `shape` and not `len`, which a compiler would take for a constant.
        one_each = torch.arange(offsets.shape[0], dtype=offsets.dtype, device=offsets.device)

        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return cast(Tensor, varlen_attn(query, key, value, one_each, offsets, 1, longest))

        return self._run_layer(layer, flat.index_select(0, offsets[:-1]), flat, attend)

    def _run_layer(self, layer: Any, own: Tensor, hidden: Tensor, attend: Callable[..., Tensor]) -> Tensor:
        """What `layer` makes of `own` `[..., d]`, which read `hidden` `[..., d]`.

        `attend` takes queries, keys and values by head, `[..., H, d/H]`. The layer's modules are called one by one, as
        it would give every position of `hidden` a query, and takes rows with masks only.
        """
        distilled = self._family == "distilbert"
        attention = layer.attention if distilled else layer.attention.self
        maps = ("q_lin", "k_lin", "v_lin") if distilled else ("query", "key", "value")
        heads = (
            getattr(attention, name)(states).unflatten(-1, (-1, attention.attention_head_size))
            for name, states in zip(maps, (own, hidden, hidden), strict=True)
        )
        read = attend(*heads).flatten(-2)
        if distilled:
            attended = layer.sa_layer_norm(attention.out_lin(read) + own)
            return layer.output_layer_norm(layer.ffn(attended) + attended)
        return layer.feed_forward_chunk(layer.attention.output(read, own))

    def pool(self, hidden: Tensor, rows: Tensor, mask: Tensor) -> Tensor:
        return hidden[rows] if self.problem.by_word else hidden[rows, 0]

    def head(self, pooled: Tensor) -> Tensor:
        model: Any = self.model
        if self.problem.by_word:
            return model.classifier(model.dropout(pooled))
        if self._family == "bert":
            return model.classifier(model.dropout(self._encoder.pooler(pooled.unsqueeze(1))))
        if self._family == "distilbert":
            return model.classifier(model.dropout(torch.relu(model.pre_classifier(pooled))))
        return model.classifier(pooled.unsqueeze(1))

    def pruned(self, layers: Sequence[int]) -> PreTrainedModel:
        return prune(self.model, self._layers, layers, {"num_hidden_layers": len(layers)})
