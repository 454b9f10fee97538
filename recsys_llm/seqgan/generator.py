"""The generator: an LSTM over groups of items, p(next item | history so far).

An item's vector is a free embedding plus a learned map of its text vector, so that items nobody had yet can be
predicted and read. The vectors are tied: they are both the input and the softmax. A group goes in as the mean of its
items' vectors, and every item of the next group is a target. Running means of past groups go past the LSTM straight to
the softmax: what is near to the recent past is likely, before anything is learned.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

DECAYS = (0.0, 0.6, 0.9, 0.98)
"""Of the running means of past groups that the generator keeps beside the LSTM; 0 is the last group alone."""
FREE_STD = 0.05
TEXT_STD = 0.2


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
    """

    counts: Tensor
    text: Tensor
    text_mean: Tensor
    text_scale: Tensor
    rebuy: Tensor
    """(3,) weight, scale and decay of :mod:`recsys_llm.seqgan.rebuy`; weight 0: off."""

    def __init__(self, counts: Tensor, text: Tensor | None, *, embedding_dim: int, hidden_dim: int) -> None:
        super().__init__()
        items = len(counts)
        self.free = nn.Parameter(torch.randn(items, embedding_dim) * FREE_STD)
        self.bias = nn.Parameter(torch.zeros(items))
        self.popularity_scale = nn.Parameter(torch.ones(()))
        self.start = nn.Parameter(torch.randn(embedding_dim) * 0.1)
        self.lstm = nn.LSTM(embedding_dim, hidden_dim, batch_first=True)
        self.output = nn.Linear(hidden_dim, embedding_dim)
        self.skip = nn.Parameter(torch.eye(embedding_dim).repeat(len(DECAYS), 1))  # (decays * E, E)
        text = torch.zeros(items, 0) if text is None else text
        present = text.abs().sum(1) > 0
        mean = text[present].mean(0) if bool(present.any()) else torch.zeros(text.shape[1])
        centred = text[present] - mean
        scale = centred.square().mean().sqrt().clamp_min(1e-6) if centred.numel() else torch.ones(())
        self.map = nn.Parameter(torch.randn(text.shape[1], embedding_dim) * (TEXT_STD / max(1, text.shape[1]) ** 0.5))
        self.register_buffer("text_mean", mean)
        self.register_buffer("text_scale", scale)
        self.register_buffer("rebuy", torch.tensor([0.0, 1.0, 0.0]))
        for name, value in (("counts", counts), ("text", text)):
            self.register_buffer(name, value, persistent=False)  # a checkpoint stores them once for both generators

    def mapped(self, text: Tensor) -> Tensor:
        """Return the learned map of text vectors (n, D) as item vectors (n, E); zero rows stay zero."""
        present = text.abs().sum(1, keepdim=True) > 0
        return (((text - self.text_mean) / self.text_scale) * present) @ self.map

    def item_table(self, items: Tensor | None = None) -> ItemTable:
        """Return the vectors and biases of the vocabulary, or of ``items`` alone (int64 (n,))."""
        parts = self.counts, self.free, self.bias, self.text
        counts, free, bias, text = parts if items is None else (part[items] for part in parts)
        rated = counts > 0
        vectors = free * rated.unsqueeze(1)
        if self.text.shape[1]:
            vectors = vectors + self.mapped(text)
        popularity = torch.log(counts.to(self.bias.dtype) + 0.5)
        return ItemTable(vectors, self.popularity_scale * popularity + bias * rated)

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
        return F.embedding_bag(rows, padded, offsets, mode="mean", include_last_offset=True, padding_idx=len(vectors))

    @property
    def state_dim(self) -> int:
        """Width of a state: the LSTM's h and c, and the running means."""
        return 2 * self.lstm.hidden_size + self.skip.shape[0]

    @torch.no_grad()
    def states(self, inputs: Tensor, state: Tensor) -> Tensor:
        """Return the state after every step, (B, T, state_dim), where :meth:`forward` returns the last.

        The gates of a step depend on the outputs before it, which the LSTM gives all at once; what is left to do step
        by step is an addition.
        """
        size = self.lstm.hidden_size
        h, c, means = torch.split(state, [size, size, self.skip.shape[0]], 1)
        hidden, _ = self.lstm(inputs, (h.unsqueeze(0).contiguous(), c.unsqueeze(0).contiguous()))
        before = torch.cat([h.unsqueeze(1), hidden[:, :-1]], 1)
        weights = dict(self.lstm.named_parameters())
        gates = inputs @ weights["weight_ih_l0"].T + before @ weights["weight_hh_l0"].T
        gates = gates + weights["bias_ih_l0"] + weights["bias_hh_l0"]
        enter, keep, value, _ = gates.chunk(4, 2)
        fresh, keep = enter.sigmoid() * value.tanh(), keep.sigmoid()
        cells = torch.empty_like(hidden)
        for step in range(hidden.shape[1]):
            c = keep[:, step] * c + fresh[:, step]
            cells[:, step] = c
        return torch.cat([hidden, cells, running_means(inputs, means)], 2)

    def queries_of(self, states: Tensor) -> Tensor:
        """Return the queries (n, E) after the steps that led to ``states`` (n, state_dim)."""
        size = self.lstm.hidden_size
        queries: Tensor = self.output(states[:, :size]) + states[:, 2 * size :] @ self.skip
        return queries

    def forward(
        self, inputs: Tensor, state: Tensor | None = None, *, lengths: Tensor | None = None, dropout: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Advance over steps.

        Parameters
        ----------
        inputs : (B, T, E)
            Group vectors; the first of a history is :attr:`start`.
        state : (B, state_dim)
            After the steps before; None: nothing was before.
        lengths : int64 (B,)
            Steps of each row, 1 to T; the rest is padding. None: all of them.
        dropout
            Share of inputs and LSTM outputs that is dropped. Explicit, so that a policy gradient is that of the very
            policy that was sampled.

        Returns
        -------
        queries : (B, T, E)
            ``queries @ table.vectors.T + table.bias`` are the logits of the next item after each step.
        state : (B, state_dim)
            After the last step of each row.
        """
        if state is None:
            state = inputs.new_zeros(len(inputs), self.state_dim)
        size = self.lstm.hidden_size
        h, c, means = torch.split(state, [size, size, self.skip.shape[0]], 1)
        inputs = F.dropout(inputs, dropout)
        start = (h.unsqueeze(0).contiguous(), c.unsqueeze(0).contiguous())
        running = running_means(inputs, means)  # (B, T, decays * E)
        if lengths is None:
            hidden, (h, c) = self.lstm(inputs, start)
            means = running[:, -1]
        else:
            packed = pack_padded_sequence(inputs, lengths.cpu(), batch_first=True, enforce_sorted=False)
            hidden, (h, c) = self.lstm(packed, start)
            hidden, _ = pad_packed_sequence(hidden, batch_first=True, total_length=inputs.shape[1])
            means = running[torch.arange(len(running)), lengths - 1]
        queries = self.output(F.dropout(hidden, dropout)) + running @ self.skip
        return queries, torch.cat([h[0], c[0], means], 1)


def running_means(inputs: Tensor, before: Tensor) -> Tensor:
    """Return ``m_t = decay * m_(t-1) + (1 - decay) * x_t`` for each of :data:`DECAYS`, (B, T, decays * E).

    Examples
    --------
    >>> x = torch.tensor([[[1.0], [0.0]]])
    >>> [round(mean, 4) for mean in running_means(x, torch.zeros(1, len(DECAYS)))[0, :, 1].tolist()]  # decay 0.6
    [0.4, 0.24]
    """
    steps = inputs.shape[1]
    decay = inputs.new_tensor(DECAYS)
    age = torch.arange(steps, device=inputs.device)
    lag = age.unsqueeze(1) - age  # (T, T)
    weights = torch.where(lag >= 0, (1 - decay)[:, None, None] * decay[:, None, None] ** lag.clamp_min(0), 0.0)
    fresh = torch.einsum("dts,bse->btde", weights, inputs)
    kept = torch.einsum("td,bde->btde", decay ** (age + 1).unsqueeze(1), before.view(len(before), len(decay), -1))
    return (fresh + kept).flatten(2)


def logits(queries: Tensor, table: ItemTable) -> Tensor:
    """Return the logits of the next item, (n, V), for queries (n, E)."""
    return torch.addmm(table.bias, queries, table.vectors.T)
