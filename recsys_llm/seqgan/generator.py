"""The generator: an LSTM over groups of items, p(next item | history so far).

An item's vector is a free embedding plus a learned map of its text vector, so that items nobody had yet can be predicted
and read. The vectors are tied: they are both the input and the softmax. A group goes in as the mean of its
items' vectors, and every item of the next group is a target.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

State = tuple[Tensor, Tensor]
"""(h, c), each (1, B, H)."""


class ItemTable(NamedTuple):
    """The items that a softmax ranges over, in one place for a whole forward pass."""

    vectors: Tensor
    """(V, E)."""
    bias: Tensor
    """(V,)."""


class Generator(nn.Module):
    """LSTM language model over groups of items.

    Parameters
    ----------
    counts : int64 (V,)
        Training events of each item: the softmax starts at their popularity. Items with none have no free embedding.
    text : float (V, D) or None
        Text vectors; zero rows where there is none.
    embedding_dim, hidden_dim
        E and H.
    dropout
        Share of inputs and outputs that is dropped in training.
    """

    counts: Tensor
    text: Tensor
    text_mean: Tensor
    text_scale: Tensor

    def __init__(
        self, counts: Tensor, text: Tensor | None, *, embedding_dim: int, hidden_dim: int, dropout: float
    ) -> None:
        super().__init__()
        items = len(counts)
        self.dropout = dropout
        self.free = nn.Parameter(torch.randn(items, embedding_dim) * FREE_STD)
        self.bias = nn.Parameter(torch.zeros(items))
        self.popularity_scale = nn.Parameter(torch.ones(()))
        self.start = nn.Parameter(torch.randn(embedding_dim) * 0.1)
        self.lstm = nn.LSTM(embedding_dim, hidden_dim, batch_first=True)
        self.output = nn.Linear(hidden_dim, embedding_dim)
        self.skip = nn.Linear(embedding_dim, embedding_dim, bias=False)
        text = torch.zeros(items, 0) if text is None else text
        present = text.abs().sum(1) > 0
        mean = text[present].mean(0) if bool(present.any()) else torch.zeros(text.shape[1])
        centred = text[present] - mean
        scale = centred.square().mean().sqrt().clamp_min(1e-6) if centred.numel() else torch.ones(())
        self.map = nn.Parameter(torch.randn(text.shape[1], embedding_dim) * (TEXT_STD / max(1, text.shape[1]) ** 0.5))
        for name, value in (("counts", counts), ("text", text), ("text_mean", mean), ("text_scale", scale)):
            self.register_buffer(name, value)

    def mapped(self, text: Tensor) -> Tensor:
        """Return the learned map of text vectors (n, D) as item vectors (n, E); zero rows stay zero."""
        present = text.abs().sum(1, keepdim=True) > 0
        return (((text - self.text_mean) / self.text_scale) * present) @ self.map

    def item_table(self) -> ItemTable:
        """Return the vectors and biases of the vocabulary."""
        rated = self.counts > 0
        vectors = self.free * rated.unsqueeze(1)
        if self.text.shape[1]:
            vectors = vectors + self.mapped(self.text)
        popularity = torch.log(self.counts.to(self.bias.dtype) + 0.5)
        return ItemTable(vectors, self.popularity_scale * popularity + self.bias * rated)

    def read_groups(self, vectors: Tensor, items: Tensor, offsets: Tensor) -> Tensor:
        """Return the mean item vector of each group, (groups, E); unknown items don't count, zero if all are.

        Parameters
        ----------
        vectors : (V, E)
            Item vectors, from :meth:`item_table`; more rows may follow the vocabulary's.
        items : int64 (n,)
            Row in ``vectors`` of each item; -1 for unknown.
        offsets : int64 (groups + 1,)
            Into ``items``.
        """
        padded = torch.cat([vectors, vectors.new_zeros(1, vectors.shape[1])])
        rows = torch.where(items < 0, len(vectors), items)
        return F.embedding_bag(
            rows, padded, offsets, mode="mean", include_last_offset=True, padding_idx=len(vectors)
        )

    def forward(self, inputs: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Advance over steps.

        Parameters
        ----------
        inputs : (B, T, E)
            Group vectors; the first of a history is :attr:`start`.
        state
            After the steps before; None: nothing was before.

        Returns
        -------
        queries : (B, T, E)
            ``queries @ table.vectors.T + table.bias`` are the logits of the next item after each step.
        state
            After the last step.
        """
        inputs = F.dropout(inputs, self.dropout, self.training)
        hidden, state = self.lstm(inputs, state)
        hidden = F.dropout(hidden, self.dropout, self.training)
        return self.output(hidden) + self.skip(inputs), state


FREE_STD = 0.05
TEXT_STD = 0.2


def logits(queries: Tensor, table: ItemTable) -> Tensor:
    """Return the logits of the next item, (n, V), for queries (n, E)."""
    return torch.addmm(table.bias, queries, table.vectors.T)
