"""A BERT-family encoder without padding: all tokens of a batch in one (tokens, hidden) matrix.

Products and norms run over tokens and see no text's border; only attention does. float32 on a CPU; on CUDA bfloat16
weights, with norms and residuals in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from recsys_llm.text.architectures import Architecture, LayerWeights, PositionBias, fused_projection
from recsys_llm.text.attention import Group, equal_lengths, grouped_attention, has_flash_attention, varlen_attention
from recsys_llm.text.linear import Activation, Linear

Ints = npt.NDArray[np.int32]

_ROWS = 16
"""A large batch is filled up to a multiple of so many rows."""
_LARGE = 256

ACTIVATIONS = ("gelu", "relu")
"""Of the feed-forward networks that are packed."""


class PackedModel:
    """The last hidden states of texts, pooled.

    Parameters
    ----------
    weights
        From :func:`~recsys_llm.text.architectures.read_architecture`, on the device to run on; its activation is one of
        :data:`ACTIVATIONS`.
    pooling
        ``mean`` or ``cls``.
    """

    def __init__(self, weights: Architecture, *, pooling: str) -> None:
        self.device = weights.words.device
        self._dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self._words = weights.words
        self._positions = weights.positions
        self._padding = weights.padding
        self._norm = _Norm(weights.norm)
        self._heads = weights.heads
        self._bias = None if weights.bias is None else _remembered(weights.bias, self._dtype)
        activation = cast(Activation, weights.activation)
        self._layers = [_Layer(layer, activation, self._dtype) for layer in weights.layers]
        self._pool_first = pooling == "cls"

    def pooled(self, ids: Sequence[Ints]) -> Tensor:
        """Encode a batch.

        Parameters
        ----------
        ids
            Token ids of each text, none empty; neighbours of equal length attend in one call.

        Returns
        -------
        float32 (B, H)
            On :attr:`device`.
        """
        with torch.inference_mode():
            hidden, attend = self._run(ids)
            return self._pool(hidden, [len(row) for row in ids], attend.groups)

    def states(self, ids: Sequence[Ints]) -> Tensor:
        """Return the last hidden state of every token, float32 (N, H), text after text."""
        with torch.inference_mode():
            return self._run(ids)[0][: sum(len(row) for row in ids)]

    def _run(self, ids: Sequence[Ints]) -> tuple[Tensor, _Attention]:
        lengths = [len(row) for row in ids]
        flat = np.concatenate(ids).astype(np.int64)
        places = _places(flat, lengths, self._padding)
        if self.device.type == "cpu":
            flat, places = _rounded_up(flat), _rounded_up(places)
        words = functional.embedding(self._on_device(flat), self._words)
        hidden = self._norm(words + functional.embedding(self._on_device(places), self._positions))
        attend = _Attention(lengths, self._heads, self._bias, self.device)
        for layer in self._layers:
            hidden = layer(hidden, attend)
        return hidden, attend

    def _pool(self, hidden: Tensor, lengths: Sequence[int], groups: Sequence[Group]) -> Tensor:
        if self._pool_first:
            return hidden[self._on_device(np.cumsum([0, *lengths[:-1]]))]
        if self.device.type == "cuda":
            offsets = self._on_device(np.cumsum([0, *lengths]))
            return torch.segment_reduce(hidden, "mean", offsets=offsets, axis=0)
        parts = [hidden[g.start : g.stop].view(g.texts, g.length, -1).mean(dim=1) for g in groups]
        return torch.cat(parts)

    def _on_device(self, array: npt.NDArray[np.int64]) -> Tensor:
        found = torch.from_numpy(array)
        # Pinned, the copy needs no wait: the host prepares the next batch while the device computes this one.
        return found.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else found


class _Attention:
    """Attention with one batch's borders."""

    def __init__(self, lengths: Sequence[int], heads: int, bias: PositionBias | None, device: torch.device) -> None:
        self.groups = equal_lengths(lengths)
        self._heads = heads
        self._bias = bias
        self._longest = max(lengths)
        self._offsets: Tensor | None = None
        if device.type == "cuda" and bias is None and has_flash_attention(device):
            offsets = torch.from_numpy(np.cumsum([0, *lengths]).astype(np.int32))
            self._offsets = offsets.pin_memory().to(device, non_blocking=True)

    def __call__(self, projected: Tensor) -> Tensor:
        if self._offsets is not None:
            return varlen_attention(projected, self._offsets, self._longest, self._heads)
        return grouped_attention(projected, self.groups, self._heads, self._bias)


class _Layer:
    def __init__(self, weights: LayerWeights, activation: Activation, dtype: torch.dtype) -> None:
        self._dtype = dtype
        projection, bias = fused_projection(weights)
        self._project = Linear(projection.to(dtype), bias.to(dtype))
        self._attended = _linear(weights.attended, dtype)
        self._attention_norm = _Norm(weights.attention_norm)
        self._up = _linear(weights.up, dtype, activation)
        self._down = _linear(weights.down, dtype)
        self._output_norm = _Norm(weights.output_norm)

    def __call__(self, hidden: Tensor, attend: _Attention) -> Tensor:
        attended = attend(self._project(hidden.to(self._dtype)))
        hidden = self._attention_norm(self._attended.plus(attended, hidden))
        return self._output_norm(self._down.plus(self._up(hidden.to(self._dtype)), hidden))


class _Norm:
    def __init__(self, norm: nn.LayerNorm) -> None:
        self._weight, self._bias, self._eps = norm.weight.detach(), norm.bias.detach(), norm.eps

    def __call__(self, x: Tensor) -> Tensor:
        return functional.layer_norm(x, self._weight.shape, self._weight, self._bias, self._eps)


def _remembered(bias: PositionBias, dtype: torch.dtype) -> PositionBias:
    """Return ``bias``, made once for all layers of a batch; texts come sorted, so few lengths are in use at once."""
    return lru_cache(maxsize=4)(lambda length: bias(length).to(dtype))


def _linear(layer: nn.Linear, dtype: torch.dtype, activation: Activation = "none") -> Linear:
    return Linear(layer.weight.detach().to(dtype), layer.bias.detach().to(dtype), activation)


def _rounded_up(array: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return a large ``array`` with zeros up to a multiple of :data:`_ROWS`: rows that no text reads.

    oneDNN keeps a kernel for each number of rows, and the allocator memory of each size: with any number, memory grows.
    """
    return np.pad(array, (0, -len(array) % _ROWS)) if len(array) > _LARGE else array


def _places(flat: npt.NDArray[np.int64], lengths: Sequence[int], padding: int | None) -> npt.NDArray[np.int64]:
    """Return each token's row of the position embeddings.

    Examples
    --------
    >>> _places(np.array([5, 6, 7, 5, 6]), [3, 2], None).tolist()
    [0, 1, 2, 0, 1]
    >>> _places(np.array([5, 1, 7, 5, 6]), [3, 2], 1).tolist()
    [2, 1, 3, 2, 3]
    """
    counted = np.ones(len(flat), np.int64) if padding is None else (flat != padding).astype(np.int64)
    running = np.cumsum(counted)
    starts = np.cumsum([0, *lengths[:-1]])
    within: npt.NDArray[np.int64] = running - np.repeat(running[starts] - counted[starts], lengths)
    return within - 1 if padding is None else within * counted + padding
