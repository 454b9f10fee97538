"""The discriminator: was this continuation of a user's history real, or generated?

What is judged here is conditional on the history. A discriminator reads the histories of a batch once, into one row of
numbers each; continuations are then judged beside those rows, however many there are of a history.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys_llm.seqgan.generator import Generator
from recsys_llm.seqgan.rollout import Judge

JUDGED_ROWS = 4096
"""Most continuations that are judged at once, so that memory doesn't grow with the number of rollouts."""


class RecentGroups(NamedTuple):
    """The last groups of each history; histories end at step T - 1, padding comes first."""

    items: Tensor
    """int64 (n,), flat."""
    offsets: Tensor
    """int64 (groups + 1,) into ``items``."""
    place: Tensor
    """int64 (groups,) ``history * T + step`` of each group."""
    shape: tuple[int, int]
    """B, T."""


class HistoryReader(Protocol):
    """The histories of a batch, in the two forms that discriminators read."""

    def recent_groups(self) -> RecentGroups:
        """Return the last groups of each."""
        ...

    def read_by(self, policy: Generator) -> tuple[Tensor, Tensor]:
        """Return queries (B, E) and states (B, S) of ``policy`` after each whole history."""
        ...


class Discriminator(Protocol):
    """What adversarial training needs of a discriminator; all of them are ``nn.Module``."""

    def read(self, histories: HistoryReader) -> Tensor:
        """Return what is to be known of each history, (B, H)."""
        ...

    def __call__(self, history: Tensor, items: Tensor, lengths: Tensor) -> Tensor:
        """Return the logit that each continuation is real, (n,).

        Parameters
        ----------
        history : (n, H)
            Rows of :meth:`read`.
        items : int64 (n, L)
        lengths : int64 (n,)
            1 to L; items past a row's length don't count.
        """
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """Return what its gradient steps change."""
        ...

    def train(self, mode: bool = True) -> Any:
        """Switch dropout on, or off."""
        ...


def judge_of(discriminator: Discriminator, history: Tensor, lengths: Tensor) -> Judge:
    """Return a discriminator as the judge that rewards come from: in eval mode and without autograd.

    Parameters
    ----------
    history : (B, H)
        From ``discriminator.read``.
    lengths : int64 (B,)
        Of the continuations.
    """

    @torch.no_grad()
    def judge(items: Tensor, rows: Tensor) -> Tensor:
        discriminator.train(False)
        blocks = zip(torch.split(items, JUDGED_ROWS), torch.split(rows, JUDGED_ROWS), strict=True)
        return torch.cat([torch.sigmoid(discriminator(history[at], block, lengths[at])) for block, at in blocks])

    return judge


class ItemEmbedding(nn.Module):
    """Item vectors of a discriminator: a free embedding plus a learned map of the text vectors.

    Parameters
    ----------
    items
        Size of the vocabulary.
    text : float (items, D) or None
        Text vectors.
    dim
        Width of the item vectors.
    """

    text: Tensor

    def __init__(self, items: int, text: Tensor | None, dim: int) -> None:
        super().__init__()
        self.free = nn.Parameter(torch.randn(items, dim) * 0.1)
        text = torch.zeros(items, 0) if text is None else text
        self.register_buffer("text", text, persistent=False)
        self.map = nn.Parameter(torch.randn(text.shape[1], dim) * 0.3)

    def vectors(self) -> Tensor:
        """Return the item vectors, (items, dim)."""
        return self.free + self.text @ self.map

    def group_grid(self, groups: RecentGroups) -> Tensor:
        """Return the mean item vector of each group in its place, (B, T, dim); zero where there is none."""
        lanes, width = groups.shape
        means = F.embedding_bag(groups.items, self.vectors(), groups.offsets, mode="mean", include_last_offset=True)
        grid = means.new_zeros(lanes * width, means.shape[1]).index_copy(0, groups.place, means)
        return grid.view(lanes, width, -1)


class GRUDiscriminator(ItemEmbedding):
    """Two GRUs, history then continuation, and a head on both last states.

    Parameters
    ----------
    items, text
        As for :class:`ItemEmbedding`.
    dim
        Width of item vectors and states.
    dropout
        In training mode only: rewards are read in eval mode.
    """

    def __init__(self, items: int, text: Tensor | None, *, dim: int, dropout: float) -> None:
        super().__init__(items, text, dim)
        self.history = nn.GRU(dim, dim, batch_first=True)
        self.continuation = nn.GRU(dim, dim, batch_first=True)
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(2 * dim, dim), nn.Tanh(), nn.Linear(dim, 1))
        self.dropout = dropout

    def read(self, histories: HistoryReader) -> Tensor:
        """Return the state after each history, (B, dim)."""
        grid = F.dropout(self.group_grid(histories.recent_groups()), self.dropout, self.training)
        _, last = self.history(grid)
        summary: Tensor = last[0]
        return summary

    def forward(self, history: Tensor, items: Tensor, lengths: Tensor) -> Tensor:
        """Return the logit that each continuation is real, (n,), as :class:`Discriminator` says."""
        steps = F.dropout(F.embedding(items, self.vectors()), self.dropout, self.training)
        states, _ = self.continuation(steps, history.unsqueeze(0).contiguous())
        return self.logits(history, states[torch.arange(len(items), device=items.device), lengths - 1])

    def logits(self, history: Tensor, states: Tensor) -> Tensor:
        """Return the logit that the continuation with each state (n, dim) is real, (n,)."""
        logit: Tensor = self.head(torch.cat([history, states], 1)).squeeze(1)
        return logit
