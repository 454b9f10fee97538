"""Policies, and the policy gradient for rewards per item (Yu et al. 2017, equation 7)."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from recsys_llm.errors import TrainingError
from recsys_llm.seqgan.generator import ItemTable
from recsys_llm.seqgan.losses import weighted_nll

NEUTRAL = 0.5
"""Baseline where a position occurs once in a batch: a discriminator that can't tell."""


class Policy(Protocol):
    """What can be read item by item, and says how likely each next item is; a :class:`Generator` is one."""

    def item_table(self) -> ItemTable:
        """Return the vectors and biases of the vocabulary."""
        ...

    def __call__(self, inputs: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return queries (B, T, E) and the last state (B, S) for inputs (B, T, E)."""
        ...


class Position(NamedTuple):
    """A policy that has read a batch of histories."""

    policy: Policy
    table: ItemTable
    first: Tensor
    """(B, E) queries of the next item."""
    states: Tensor
    """(B, S)."""

    def queries(self, items: Tensor) -> Tensor:
        """Return the query of each item of continuations ``items``, int64 (B, L), as (B, L, E)."""
        queries = self.first.unsqueeze(1)
        if items.shape[1] > 1:
            later, _ = self.policy(self.table.vectors[items[:, :-1]], self.states)
            queries = torch.cat([queries, later], 1)
        return queries


def require_finite(position: Position, where: str) -> None:
    """Check that items can be drawn from a policy.

    Raises
    ------
    TrainingError
        A weight or a query is not finite.
    """
    for tensor in (position.table.vectors, position.table.bias, position.first):
        if not bool(torch.isfinite(tensor).all()):
            raise TrainingError(f"{where}: expected finite weights, found others; lower the learning rate")


def advantages(rewards: Tensor, valid: Tensor) -> Tensor:
    """Return rewards minus the mean reward of the *other* sequences at the same position; 0 where not valid.

    A baseline that doesn't depend on a sequence's own items leaves the policy gradient unbiased.

    Parameters
    ----------
    rewards : (B, L)
    valid : bool (B, L)
        Positions within each sequence's length.

    Examples
    --------
    >>> advantages(torch.tensor([[0.25], [0.75], [0.9]]), torch.tensor([[True], [True], [False]])).flatten().tolist()
    [-0.5, 0.5, 0.0]
    """
    kept = torch.where(valid, rewards, 0.0)
    others = valid.sum(0) - valid.to(rewards.dtype)
    baseline = torch.where(others > 0, (kept.sum(0) - kept) / others.clamp_min(1), NEUTRAL)
    return torch.where(valid, rewards - baseline, 0.0)


def prefix_advantages(values: Tensor, valid: Tensor) -> Tensor:
    """Return what each item adds to the value of its prefix, ``Q_l - Q_(l-1)``; 0 where not valid.

    The value of the shorter prefix is at hand from its own rollouts, and doesn't depend on the item: a baseline that
    costs nothing and leaves the policy gradient unbiased. The first item's is that of :func:`advantages`.

    Parameters
    ----------
    values : (B, L)
        Of the prefix that ends with each item.
    valid : bool (B, L)

    Examples
    --------
    >>> valid = torch.tensor([[True, True], [True, False]])
    >>> prefix_advantages(torch.tensor([[0.25, 0.75], [0.75, 0.5]]), valid).tolist()
    [[-0.5, 0.5], [0.5, 0.0]]
    """
    opening = advantages(values[:, :1], valid[:, :1])
    return torch.cat([opening, torch.where(valid[:, 1:], values.diff(dim=1), 0.0)], 1)


def queries_gradient_loss(queries: Tensor, table: ItemTable, items: Tensor, advantage: Tensor) -> Tensor:
    """Return the loss whose gradient is minus the policy gradient, summed over positions, averaged over sequences.

    Parameters
    ----------
    queries : (B, L, E)
        Of each item, from :meth:`Position.queries`; differentiable.
    items : int64 (B, L)
        Sampled from the generator.
    advantage : (B, L)
        Constant; 0 where an item doesn't count.
    """
    rows = torch.arange(items.numel(), device=items.device)
    return weighted_nll(
        queries.flatten(0, 1),
        table.vectors,
        table.bias,
        rows=rows,
        targets=items.flatten(),
        weights=advantage.detach().flatten() / len(items),
    )
