"""Where BERT, DistilBERT, RoBERTa, XLM-R and MPNet of transformers keep their weights.

They compute the same layers under different names (Devlin et al. 2019, Vaswani et al. 2017, post-norm): embeddings,
then per layer attention and a feed-forward network, each with a residual and a layer norm. MPNet adds a bias by
distance to its attention scores (Song et al. 2020, section 2.3).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

PositionBias = Callable[[int], Tensor]
"""From a length L to what is added to the attention scores, (heads, L, L)."""


@dataclass(frozen=True)
class LayerWeights:
    """One layer, as modules of the transformers model."""

    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    attended: nn.Linear
    attention_norm: nn.LayerNorm
    up: nn.Linear
    down: nn.Linear
    output_norm: nn.LayerNorm


@dataclass(frozen=True)
class Architecture:
    """An encoder's weights and the few ways in which the architectures differ."""

    words: Tensor
    """(V, H)"""
    positions: Tensor
    """(P, H), the embedding of token type 0 added where there is one."""
    padding: int | None
    """RoBERTa counts positions from after this id, and doesn't count tokens of this id; None: positions start at 0."""
    norm: nn.LayerNorm
    layers: tuple[LayerWeights, ...]
    heads: int
    activation: str
    """Name of the feed-forward network's activation, as config.json gives it."""
    bias: PositionBias | None


def read_architecture(model: nn.Module) -> Architecture | None:
    """Return the weights of a model; None where it is of another architecture, or one of its settings is unusual."""
    reader = _READERS.get(type(model).__name__)
    config: Any = model.config
    usual = not getattr(config, "is_decoder", False) and not getattr(config, "add_cross_attention", False)
    absolute = (getattr(config, "position_embedding_type", None) or "absolute") == "absolute"
    return reader(model) if reader is not None and usual and absolute else None


def _bert(model: Any, *, padding: int | None = None) -> Architecture:
    embeddings, config = model.embeddings, model.config
    return Architecture(
        words=embeddings.word_embeddings.weight.detach(),
        positions=(embeddings.position_embeddings.weight + embeddings.token_type_embeddings.weight[0]).detach(),
        padding=padding,
        norm=embeddings.LayerNorm,
        layers=tuple(
            LayerWeights(
                layer.attention.self.query,
                layer.attention.self.key,
                layer.attention.self.value,
                layer.attention.output.dense,
                layer.attention.output.LayerNorm,
                layer.intermediate.dense,
                layer.output.dense,
                layer.output.LayerNorm,
            )
            for layer in model.encoder.layer
        ),
        heads=config.num_attention_heads,
        activation=config.hidden_act,
        bias=None,
    )


def _roberta(model: Any) -> Architecture:
    return _bert(model, padding=model.embeddings.padding_idx)


def _distilbert(model: Any) -> Architecture:
    embeddings, config = model.embeddings, model.config
    return Architecture(
        words=embeddings.word_embeddings.weight.detach(),
        positions=embeddings.position_embeddings.weight.detach(),
        padding=None,
        norm=embeddings.LayerNorm,
        layers=tuple(
            LayerWeights(
                layer.attention.q_lin,
                layer.attention.k_lin,
                layer.attention.v_lin,
                layer.attention.out_lin,
                layer.sa_layer_norm,
                layer.ffn.lin1,
                layer.ffn.lin2,
                layer.output_layer_norm,
            )
            for layer in model.transformer.layer
        ),
        heads=config.n_heads,
        activation=config.activation,
        bias=None,
    )


def _mpnet(model: Any) -> Architecture:
    embeddings, config = model.embeddings, model.config
    bucket, table = model.encoder.relative_position_bucket, model.encoder.relative_attention_bias.weight.detach()

    def bias(length: int) -> Tensor:
        places = torch.arange(length, device=table.device)
        found: Tensor = table[bucket(places[None, :] - places[:, None])].permute(2, 0, 1)
        return found.contiguous()

    return Architecture(
        words=embeddings.word_embeddings.weight.detach(),
        positions=embeddings.position_embeddings.weight.detach(),
        padding=embeddings.padding_idx,
        norm=embeddings.LayerNorm,
        layers=tuple(
            LayerWeights(
                layer.attention.attn.q,
                layer.attention.attn.k,
                layer.attention.attn.v,
                layer.attention.attn.o,
                layer.attention.LayerNorm,
                layer.intermediate.dense,
                layer.output.dense,
                layer.output.LayerNorm,
            )
            for layer in model.encoder.layer
        ),
        heads=config.num_attention_heads,
        activation=config.hidden_act,
        bias=bias,
    )


_READERS: dict[str, Callable[[Any], Architecture]] = {
    "BertModel": _bert,
    "DistilBertModel": _distilbert,
    "RobertaModel": _roberta,
    "XLMRobertaModel": _roberta,
    "MPNetModel": _mpnet,
}


def fused_projection(layer: LayerWeights) -> tuple[Tensor, Tensor]:
    """Return the weight (3 * H, H) and bias (3 * H,) that give query, key and value in one product."""
    parts = (layer.query, layer.key, layer.value)
    return torch.cat([part.weight.detach() for part in parts]), torch.cat([part.bias.detach() for part in parts])
