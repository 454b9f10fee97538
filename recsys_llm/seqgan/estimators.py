"""Estimators of the policy gradient: what was each generated item worth?

Each takes continuations that a generator has just drawn, and returns a loss whose gradient is minus the gradient of the
expected reward:

- :class:`Rollouts`: the paper's Monte-Carlo search (Yu et al. 2017, equation 4), with one of two baselines;
- :class:`Reinforce`: no rollouts, many sequences instead (Williams 1992). Where the reward is a log-density ratio, an
  item's own part of it is summed over all items that might have been drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from recsys_llm.seqgan.density_ratio import exact_rewards
from recsys_llm.seqgan.generator import Generator
from recsys_llm.seqgan.policy import Position, advantages, prefix_advantages, queries_gradient_loss
from recsys_llm.seqgan.rollout import Judge, rollout_rewards
from recsys_llm.seqgan.settings import EstimatorName


@dataclass(frozen=True, eq=False)
class Turn:
    """Continuations that a generator has drawn, and what judges them."""

    own: Position
    """The generator after the histories, differentiable."""
    items: Tensor
    """int64 (B, L)."""
    lengths: Tensor
    """int64 (B,), 1 to L; items past a row's length don't count."""
    judge: Judge
    """In eval mode, without autograd."""
    target: Position | None = None
    """The policy p of a reward ``log p - log q``, constant, after the same histories; None: only the judge is known."""

    @property
    def valid(self) -> Tensor:
        """(B, L) bool: positions within each length."""
        return torch.arange(self.items.shape[1], device=self.items.device) < self.lengths.unsqueeze(1)


class Estimate(NamedTuple):
    """A policy gradient, as a loss."""

    loss: Tensor
    """Scalar: summed over positions, averaged over sequences."""
    rewards: Tensor
    """(B, L) probabilities of being real; meaningless past a row's length."""


class Estimator(Protocol):
    """How rewards become a gradient."""

    def __call__(self, turn: Turn, lagged: Position, rng: torch.Generator) -> Estimate:
        """Return the policy gradient of the continuations of ``turn``.

        Parameters
        ----------
        lagged
            The rollout policy after the same histories, constant.
        rng
            For what is drawn, on the generator's device.
        """
        ...


@dataclass(frozen=True)
class Rollouts:
    """The mean reward of ``count`` completions of each prefix, by the rollout policy."""

    count: int
    """N in the paper, 1 or more."""
    baseline: Literal["position", "prefix"] = "position"
    """"position": mean of the other sequences there. "prefix": the value of the prefix without the item."""

    def __call__(self, turn: Turn, lagged: Position, rng: torch.Generator) -> Estimate:
        """Return the policy gradient, as :class:`Estimator` says."""
        policy, table, _, states = lagged
        if not isinstance(policy, Generator):
            raise TypeError(f"expected a Generator to complete prefixes with, found {type(policy).__name__}")
        with torch.no_grad():
            rewards = rollout_rewards(policy, table, states, turn.items, turn.judge, self.count, rng)
        compare = prefix_advantages if self.baseline == "prefix" else advantages
        advantage = compare(rewards, turn.valid)
        return Estimate(
            queries_gradient_loss(turn.own.queries(turn.items), turn.own.table, turn.items, advantage), rewards
        )


@dataclass(frozen=True)
class Reinforce:
    """The reward of each whole sequence, for all of its items; the baseline is the mean of the other sequences.

    With a ``target`` p the reward is ``sum_t log p(x_t) - log q(x_t)``: the part of step t is summed exactly over all
    items, and what an item is worth later is the sum of those exact parts of the steps after it.
    """

    def __call__(self, turn: Turn, lagged: Position, rng: torch.Generator) -> Estimate:
        """Return the policy gradient, as :class:`Estimator` says; ``lagged`` and ``rng`` are not used."""
        if turn.target is not None:
            return _density_estimate(turn, turn.target)
        with torch.no_grad():
            whole = turn.judge(turn.items, torch.arange(len(turn.items), device=turn.items.device))
        rewards = whole.unsqueeze(1).expand(turn.items.shape)
        advantage = advantages(rewards, turn.valid)
        return Estimate(
            queries_gradient_loss(turn.own.queries(turn.items), turn.own.table, turn.items, advantage), rewards
        )


def _density_estimate(turn: Turn, target: Position) -> Estimate:
    valid, shape = turn.valid, turn.items.shape
    queries = turn.own.queries(turn.items)
    with torch.no_grad():
        target_queries = target.queries(turn.items).flatten(0, 1)
    flat = turn.items.flatten()
    expected, drawn = exact_rewards(queries.flatten(0, 1), turn.own.table, target_queries, target.table, flat)
    expected = torch.where(valid, expected.view(shape), 0.0)
    future = later_sums(expected.detach())
    advantage = advantages(future, valid)
    loss = queries_gradient_loss(queries, turn.own.table, turn.items, advantage) - expected.sum() / len(turn.items)
    ratio = torch.where(valid, drawn.detach().view(shape), 0.0).sum(1, keepdim=True)
    return Estimate(loss, torch.sigmoid(ratio).expand(shape))


def later_sums(values: Tensor) -> Tensor:
    """Return the sum of each row's values strictly after each position, (B, L).

    Examples
    --------
    >>> later_sums(torch.tensor([[1.0, 2.0, 4.0]])).tolist()
    [[6.0, 4.0, 0.0]]
    """
    return values.flip(1).cumsum(1).flip(1) - values


def make_estimator(name: EstimatorName, *, rollouts: int) -> Estimator:
    """Return the estimator of a name; ``rollouts`` completions per prefix, where there are any."""
    if name == "reinforce":
        return Reinforce()
    return Rollouts(rollouts, "prefix" if name == "rollouts_baseline" else "position")
