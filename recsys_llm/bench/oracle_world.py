"""The synthetic test's truth: an LSTM with random weights, whose likelihood of any sequence is known.

Yu et al. 2017, section 4: weights from N(0, 1), sequences of 20 items. Sequences are items 0 to V - 1; a policy begins
each with its start vector, and has no history before it.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys_llm.seqgan.density_ratio import item_log_probs
from recsys_llm.seqgan.discriminator import RecentGroups
from recsys_llm.seqgan.generator import Generator, ItemTable
from recsys_llm.seqgan.policy import Policy, Position
from recsys_llm.seqgan.rollout import sample_items


class StartingPolicy(Policy, Protocol):
    """A policy that knows how a sequence begins."""

    @property
    def start(self) -> Tensor:
        """(E,) its first input."""
        ...


class Oracle(nn.Module):
    """An LSTM language model whose weights are drawn from N(0, 1) and never trained.

    Its input and output vectors differ, where a policy has one table for both. The table holds them side by side:
    columns 0 to E - 1 are read, columns E to E + H - 1 are multiplied with the state.

    Parameters
    ----------
    items
        V.
    dim
        Width of item vectors and state, E = H.
    rng
        Draws the weights.
    """

    def __init__(self, items: int, *, dim: int, rng: torch.Generator) -> None:
        super().__init__()
        self.dim = dim
        self.lstm = nn.LSTM(dim, dim, batch_first=True)
        self.inputs = nn.Parameter(torch.empty(items, dim))
        self.outputs = nn.Parameter(torch.empty(items, dim))
        self.bias = nn.Parameter(torch.empty(items))
        self.opening = nn.Parameter(torch.empty(dim))
        for parameter in self.parameters():
            nn.init.normal_(parameter, generator=rng).requires_grad_(False)

    @property
    def start(self) -> Tensor:
        """(E + H,) the first input."""
        return F.pad(self.opening, (0, self.dim))

    def item_table(self) -> ItemTable:
        """Return input and output vectors side by side, (V, E + H), and biases."""
        return ItemTable(torch.cat([self.inputs, self.outputs], 1), self.bias)

    def forward(self, inputs: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return queries (B, T, E + H) and the last state (B, 2 H), as a :class:`Policy` does."""
        if state is None:
            state = inputs.new_zeros(len(inputs), 2 * self.dim)
        h, c = (part.unsqueeze(0).contiguous() for part in state.chunk(2, 1))
        hidden, (h, c) = self.lstm(inputs[:, :, : self.dim], (h, c))
        return F.pad(hidden, (self.dim, 0)), torch.cat([h[0], c[0]], 1)

    @torch.no_grad()
    def sample(self, count: int, length: int, rng: torch.Generator) -> Tensor:
        """Return sequences, int64 (count, length)."""
        position = opening(self, count)
        queries, states = position.first, position.states
        drawn = []
        for _ in range(length):
            items, _ = sample_items(queries, position.table, rng)
            drawn.append(items)
            later, states = self(position.table.vectors[items].unsqueeze(1), states)
            queries = later.squeeze(1)
        return torch.stack(drawn, 1)


def opening(policy: StartingPolicy, count: int) -> Position:
    """Return a policy at the beginning of ``count`` sequences; differentiable."""
    queries, states = policy(policy.start.expand(count, 1, -1))
    return Position(policy, policy.item_table(), queries.squeeze(1), states)


@torch.no_grad()
def sequence_nll(policy: StartingPolicy, sequences: Tensor) -> float:
    """Return the mean ``-log p`` of sequences, int64 (n, L), in nats per item."""
    return -float(item_log_probs(opening(policy, len(sequences)), sequences).mean())


class NoHistories:
    """As many empty histories, as :class:`~recsys_llm.seqgan.discriminator.HistoryReader`."""

    def __init__(self, count: int) -> None:
        self.count = count

    def recent_groups(self) -> RecentGroups:
        """Return no groups."""
        none = torch.zeros(0, dtype=torch.int64)
        return RecentGroups(none, torch.zeros(1, dtype=torch.int64), none, (self.count, 1))

    def read_by(self, policy: Generator) -> tuple[Tensor, Tensor]:
        """Return a policy's queries and states after the start vector."""
        position = opening(policy, self.count)
        return position.first, position.states
