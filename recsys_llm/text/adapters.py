"""Which weights of an encoder a fine-tuning moves: the top layers' own, or low-rank additions to them.

Low-rank adaptation: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", section 4.1, on the query,
value and output projections of attention. An addition is added into its weight in the end, so the result is a plain
encoder.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from recsys_llm.errors import TrainingError
from recsys_llm.text.architectures import Architecture, LayerWeights, PositionBias
from recsys_llm.text.attention import Group, equal_lengths, group_attention
from recsys_llm.text.packed import ACTIVATIONS

Projection = Literal["query", "key", "value", "attended"]
ADAPTED: tuple[Projection, ...] = ("query", "value", "attended")

State = dict[str, Tensor]
"""Trainable weights by name, apart from the module's own."""


class LowRank(nn.Module):
    """An addition ``alpha / rank * up @ down`` to a weight (out, in) that stays as it is.

    It starts at zero: ``up`` is zero, ``down`` is random.
    """

    def __init__(self, linear: nn.Linear, *, rank: int, alpha: float) -> None:
        super().__init__()
        weight = linear.weight
        self.down = nn.Parameter(weight.new_empty(rank, weight.shape[1]))
        self.up = nn.Parameter(weight.new_zeros(weight.shape[0], rank))
        self.scale = alpha / rank
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        """Return ``weight`` with the addition, (out, in)."""
        return weight + self.scale * (self.up @ self.down)

    @torch.no_grad()
    def merge_into(self, weight: Tensor) -> None:
        """Add the addition to ``weight`` in place, and set it to zero."""
        weight.copy_(self(weight))
        self.up.zero_()


class TopLayers(nn.Module):
    """The last layers of an encoder, differentiable and without padding.

    Everything of the encoder is frozen but what is trained here: all weights of the layers or, with ``rank``, low-rank
    additions to their attention. Dropout is applied where BERT has it, except to attention scores.

    Parameters
    ----------
    architecture
        From :func:`~recsys_llm.text.architectures.read_architecture`. Its modules are the encoder's own: what is
        trained here is trained there.
    count
        Layers, 1 to all.
    rank, alpha
        Of the additions; a rank of None trains the layers themselves.

    Raises
    ------
    TrainingError
        The encoder has fewer layers, or an activation that isn't known here.
    """

    def __init__(
        self, architecture: Architecture, count: int, *, rank: int | None, alpha: float = 16.0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        depth = len(architecture.layers)
        if not 1 <= count <= depth:
            raise TrainingError(f"train_layers: expected 1 to {depth}, the layers of this encoder, found {count}")
        if architecture.activation not in ACTIVATIONS:
            known = " or ".join(ACTIVATIONS)
            raise TrainingError(f"expected an encoder with activation {known}, found {architecture.activation!r}")
        self._heads = architecture.heads
        self._bias = architecture.bias
        self.layers = nn.ModuleList(
            _Layer(layer, architecture.activation, rank=rank, alpha=alpha, dropout=dropout)
            for layer in architecture.layers[depth - count :]
        )

    def forward(self, states: Tensor, lengths: Sequence[int]) -> Tensor:
        """Return the last hidden states (N, H) from those below the layers.

        Parameters
        ----------
        states : float32 (N, H)
            Tokens of some texts, text after text.
        lengths
            Tokens of each text; texts of equal length should be neighbours, since they attend in one call.
        """
        groups = equal_lengths(lengths)
        for layer in self.layers:
            states = layer(states, groups, self._heads, self._bias)
        return states

    def trained_state(self) -> State:
        """Return a copy of the weights that are trained."""
        return {name: value.detach().clone() for name, value in self.named_parameters() if value.requires_grad}

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Set the weights that are trained."""
        for name, value in self.named_parameters():
            if value.requires_grad:
                value.copy_(state[name])

    def merge(self) -> None:
        """Add low-rank additions into the weights."""
        for layer in self.layers:
            cast(_Layer, layer).merge()


class _Layer(nn.Module):
    def __init__(
        self, weights: LayerWeights, activation: str, *, rank: int | None, alpha: float, dropout: float
    ) -> None:
        super().__init__()
        self.weights = nn.ModuleDict(vars(weights))
        self.weights.requires_grad_(rank is None)
        self.additions = nn.ModuleDict()
        if rank is not None:
            for name in ADAPTED:
                self.additions[name] = LowRank(getattr(weights, name), rank=rank, alpha=alpha)
        self._plain = weights
        self._activation = functional.gelu if activation == "gelu" else functional.relu
        self._dropout = dropout

    def forward(self, states: Tensor, groups: Sequence[Group], heads: int, bias: PositionBias | None) -> Tensor:
        layer = self._plain
        projected = torch.cat([self._project(name, states) for name in ("query", "key", "value")], dim=1)
        attended = self._project("attended", _attention(projected, groups, heads, bias))
        states = layer.attention_norm(states + functional.dropout(attended, self._dropout, self.training))
        down = layer.down(self._activation(layer.up(states)))
        found: Tensor = layer.output_norm(states + functional.dropout(down, self._dropout, self.training))
        return found

    def _project(self, name: str, states: Tensor) -> Tensor:
        linear: nn.Linear = getattr(self._plain, name)
        weight = self.additions[name](linear.weight) if name in self.additions else linear.weight
        return functional.linear(states, weight, linear.bias)

    def merge(self) -> None:
        for name, addition in self.additions.items():
            cast(LowRank, addition).merge_into(getattr(self._plain, name).weight)


def _attention(projected: Tensor, groups: Sequence[Group], heads: int, bias: PositionBias | None) -> Tensor:
    """Return the attention of :func:`~recsys_llm.text.attention.grouped_attention`, with gradients.

    That one writes into one tensor; gradients through it would copy the whole for every group.
    """
    width = projected.shape[1] // 3
    return torch.cat([group_attention(projected, group, heads, bias).reshape(-1, width) for group in groups])


def blend(start: State, trained: State, share: float) -> State:
    """Return weights on the straight line from the start to the trained ones: WiSE-FT, Wortsman et al. 2022, section 3.

    Parameters
    ----------
    share
        0: the start; 1: the trained. A low-rank addition starts at zero, so it is scaled.

    Examples
    --------
    >>> blend({"weight": torch.zeros(1)}, {"weight": torch.ones(1)}, 0.25)
    {'weight': tensor([0.2500])}
    """
    found = {}
    for name, value in trained.items():
        is_down = name.endswith(".down")  # the line runs through the product with ``up``, not through both factors
        found[name] = value.clone() if is_down else torch.lerp(start[name], value, share)
    return found
