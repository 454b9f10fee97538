"""Where BERT, DistilBERT, RoBERTa, XLM-R and MPNet of transformers keep their weights.

They compute the same layers under different names (Devlin et al. 2019, Vaswani et al. 2017, post-norm): embeddings,
then per layer attention and a feed-forward network, each with a residual and a layer norm. MPNet adds a bias by
distance to its attention scores (Song et al. 2020, section 2.3).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
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


@dataclass(frozen=True)
class _Names:
    """Where a transformers class keeps what :class:`Architecture` holds; dotted attributes."""

    weights: tuple[str, ...]
    """Of a layer, in the order of :class:`LayerWeights`."""
    layers: str = "encoder.layer"
    heads: str = "num_attention_heads"
    activation: str = "hidden_act"
    counts_padding: bool = True
    """Whether positions start at 0 and count every token."""


_FEED_FORWARD = ("intermediate.dense", "output.dense", "output.LayerNorm")
_BERT = (
    *("attention.self.query", "attention.self.key", "attention.self.value"),
    *("attention.output.dense", "attention.output.LayerNorm", *_FEED_FORWARD),
)
_MPNET = (
    *("attention.attn.q", "attention.attn.k", "attention.attn.v", "attention.attn.o"),
    *("attention.LayerNorm", *_FEED_FORWARD),
)
_DISTILBERT = (
    *("attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin", "sa_layer_norm"),
    *("ffn.lin1", "ffn.lin2", "output_layer_norm"),
)
_KNOWN = {
    "BertModel": _Names(_BERT),
    "DistilBertModel": _Names(_DISTILBERT, "transformer.layer", "n_heads", "activation"),
    "RobertaModel": _Names(_BERT, counts_padding=False),
    "XLMRobertaModel": _Names(_BERT, counts_padding=False),
    "MPNetModel": _Names(_MPNET, counts_padding=False),
}


def read_architecture(model: nn.Module) -> Architecture | None:
    """Return the weights of a model; None where it is of another architecture, or one of its settings is unusual."""
    names = _KNOWN.get(type(model).__name__)
    config: Any = model.config
    usual = not getattr(config, "is_decoder", False) and not getattr(config, "add_cross_attention", False)
    absolute = (getattr(config, "position_embedding_type", None) or "absolute") == "absolute"
    if names is None or not usual or not absolute:
        return None
    embeddings: Any = model.embeddings
    positions = embeddings.position_embeddings.weight
    if hasattr(embeddings, "token_type_embeddings"):
        positions = positions + embeddings.token_type_embeddings.weight[0]
    return Architecture(
        words=embeddings.word_embeddings.weight.detach(),
        positions=positions.detach(),
        padding=None if names.counts_padding else embeddings.padding_idx,
        norm=embeddings.LayerNorm,
        layers=tuple(LayerWeights(*attrgetter(*names.weights)(layer)) for layer in attrgetter(names.layers)(model)),
        heads=getattr(config, names.heads),
        activation=getattr(config, names.activation),
        bias=_distance_bias(model.encoder) if type(model).__name__ == "MPNetModel" else None,
    )


def _distance_bias(encoder: Any) -> PositionBias:
    """Return MPNet's bias by distance."""
    bucket, table = encoder.relative_position_bucket, encoder.relative_attention_bias.weight.detach()

    def bias(length: int) -> Tensor:
        places = torch.arange(length, device=table.device)
        found: Tensor = table[bucket(places[None, :] - places[:, None])].permute(2, 0, 1)
        return found.contiguous()

    return bias


def fused_projection(layer: LayerWeights) -> tuple[Tensor, Tensor]:
    """Return the weight (3 * H, H) and bias (3 * H,) that give query, key and value in one product."""
    parts = (layer.query, layer.key, layer.value)
    return torch.cat([part.weight.detach() for part in parts]), torch.cat([part.bias.detach() for part in parts])
