"""The policy gradient of a generator for rewards per item (Yu et al. 2017, equation 7)."""

from __future__ import annotations

import torch
from torch import Tensor

from recsys_llm.seqgan.generator import Generator, ItemTable
from recsys_llm.seqgan.losses import weighted_nll

NEUTRAL = 0.5
"""Baseline where a position occurs once in a batch: a discriminator that can't tell."""


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


def policy_gradient_loss(
    generator: Generator, table: ItemTable, first: Tensor, states: Tensor, items: Tensor, advantage: Tensor
) -> Tensor:
    """Return the loss whose gradient is minus the policy gradient, summed over positions, averaged over sequences.

    Parameters
    ----------
    first, states
        Queries (B, E) and states (B, state_dim) after the histories, differentiable.
    items : int64 (B, L)
        Sampled from the generator.
    advantage : (B, L)
        Constant; 0 where an item doesn't count.
    """
    queries = first.unsqueeze(1)
    if items.shape[1] > 1:
        later, _ = generator(table.vectors[items[:, :-1]], states)
        queries = torch.cat([queries, later], 1)  # (B, L, E)
    rows = torch.arange(items.numel(), device=items.device)
    return weighted_nll(
        queries.flatten(0, 1),
        table.vectors,
        table.bias,
        rows=rows,
        targets=items.flatten(),
        weights=advantage.detach().flatten() / len(items),
    )
