"""The discriminator: was this continuation of a user's history real, or generated?

The paper's is a CNN over a whole sequence. What is judged here is conditional on the history, so that this one is a GRU
over the history and a second GRU over the continuation.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Discriminator(Protocol):
    """What adversarial training needs of a discriminator."""

    def read_history(self, items: Tensor, offsets: Tensor, place: Tensor, shape: tuple[int, int]) -> Tensor:
        """Return a summary of each history, (B, H)."""
        ...

    def __call__(self, history: Tensor, items: Tensor, lengths: Tensor) -> Tensor:
        """Return the logit that each continuation is real, (B,)."""
        ...


class GRUDiscriminator(nn.Module):
    """Two GRUs, history then continuation, and a head on both last states.

    Parameters
    ----------
    items
        Size of the vocabulary.
    text : float (items, D) or None
        Text vectors.
    dim
        Width of item vectors and states.
    dropout
        In training mode only: rewards are read in eval mode.
    """

    text: Tensor

    def __init__(self, items: int, text: Tensor | None, *, dim: int, dropout: float) -> None:
        super().__init__()
        self.free = nn.Parameter(torch.randn(items, dim) * 0.1)
        text = torch.zeros(items, 0) if text is None else text
        self.register_buffer("text", text, persistent=False)
        self.map = nn.Parameter(torch.randn(text.shape[1], dim) * 0.3)
        self.history = nn.GRU(dim, dim, batch_first=True)
        self.continuation = nn.GRU(dim, dim, batch_first=True)
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(2 * dim, dim), nn.Tanh(), nn.Linear(dim, 1))
        self.dropout = dropout

    def vectors(self) -> Tensor:
        """Return the item vectors, (items, dim)."""
        return self.free + self.text @ self.map

    def read_history(self, items: Tensor, offsets: Tensor, place: Tensor, shape: tuple[int, int]) -> Tensor:
        """Return a summary of each history, (B, dim).

        Parameters
        ----------
        items, offsets
            Items of each group, flat.
        place : int64 (groups,)
            ``history * T + step`` of each group. Histories end at step T - 1: padding comes first.
        shape
            B, T.
        """
        lanes, width = shape
        groups = F.embedding_bag(items, self.vectors(), offsets, mode="mean", include_last_offset=True)
        grid = groups.new_zeros(lanes * width, groups.shape[1]).index_copy(0, place, groups)
        grid = F.dropout(grid, self.dropout, self.training)
        _, last = self.history(grid.view(lanes, width, -1))
        summary: Tensor = last[0]
        return summary

    def forward(self, history: Tensor, items: Tensor, lengths: Tensor) -> Tensor:
        """Return the logit that each continuation is real, (B,).

        Parameters
        ----------
        history : (B, dim)
            From :meth:`read_history`.
        items : int64 (B, L)
        lengths : int64 (B,)
            1 to L; items past a row's length don't count.
        """
        steps = F.dropout(F.embedding(items, self.vectors()), self.dropout, self.training)
        states, _ = self.continuation(steps, history.unsqueeze(0).contiguous())
        last = states[torch.arange(len(items), device=items.device), lengths - 1]
        logit: Tensor = self.head(torch.cat([history, last], 1)).squeeze(1)
        return logit
