"""Monte-Carlo rollouts (Yu et al. 2017, equation 4): what is a prefix worth?

The reward of the item at step t is the discriminator's mean probability over N completions of the prefix that ends with
it; of the last item, the probability of the sequence itself. Every prefix is read once. Its state is then copied N
times, and the completions of all prefixes grow together::

    generated      x1 x2 x3
    prefix 1       x1  .  .      t = 1: draw N 2nd items of prefix 1
    prefix 2       x1 x2  .      t = 2: draw N 3rd items of prefix 2; one for each completion of prefix 1

The first items that are drawn after a prefix come from one distribution, which is computed once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from recsys_llm.seqgan.generator import Generator, ItemTable
from recsys_llm.seqgan.sampling import draw
from recsys_llm.seqgan.stepping import Stepper

Judge = Callable[[Tensor, Tensor], Tensor]
"""(items (R, L), row in the batch of each (R,)) -> probability of being real (R,)."""


@runtime_checkable
class PrefixJudge(Protocol):
    """A :data:`Judge` that reads the prefix that many completions share once."""

    def __call__(self, items: Tensor, rows: Tensor) -> Tensor:
        """Return probabilities, as a :data:`Judge` does."""
        ...

    def completions(self, items: Tensor, completed: Tensor) -> Tensor:
        """Return the probability of each completion, (L - 1, N, B).

        Parameters
        ----------
        items : int64 (B, L)
            The sequences of the batch.
        completed : int64 (L - 1, N, B, L)
            From :func:`complete_prefixes`.
        """
        ...


def sample_items(queries: Tensor, table: ItemTable, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw one item per query (n, E) from the softmax; see :func:`recsys_llm.seqgan.sampling.draw`.

    Returns
    -------
    items : int64 (n,)
    entropy : float (n,)
        Of each distribution, nats.
    """
    drawn = draw(queries, table, _uniforms(rng, len(queries)), entropy=True)
    assert drawn.entropy is not None  # asked for
    return drawn.items, drawn.entropy


def _uniforms(rng: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(shape, generator=rng, device=rng.device, dtype=torch.float64)


def advance(policy: Generator, table: ItemTable, items: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
    """Read one more item per row: queries (n, E) and states (n, state_dim) after it."""
    queries, states = policy(table.vectors[items].unsqueeze(1), states)
    return queries.squeeze(1), states


@torch.no_grad()
def follow(lagged: Generator, policy: Generator, *, lag: float) -> None:
    """Move a rollout policy towards the generator; it keeps ``lag`` of itself."""
    for slow, fast in zip(lagged.parameters(), policy.parameters(), strict=True):
        slow.lerp_(fast, 1.0 - lag)


@torch.no_grad()
def generate(
    policy: Generator, table: ItemTable, queries: Tensor, states: Tensor, steps: int, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Continue each history by ``steps`` items.

    Parameters
    ----------
    queries, states
        After the histories: (B, E) and (B, state_dim).

    Returns
    -------
    items : int64 (B, steps)
    entropy : float (B, steps)
        Of the distribution that each was drawn from, nats.
    """
    shape = len(queries), steps
    items = torch.empty(shape, dtype=torch.int64, device=queries.device)
    entropies = queries.new_empty(shape)
    stepper = Stepper(policy, table, reads=len(queries) * (steps - 1))
    lanes = stepper.open(states)
    for step in range(steps):
        if step:
            stepper.read(items[:, step - 1], lanes)
            queries = lanes.queries
        items[:, step], entropies[:, step] = sample_items(queries, table, rng)
    return items, entropies


@torch.no_grad()
def complete_prefixes(
    policy: Generator,
    table: ItemTable,
    states: Tensor,
    items: Tensor,
    rollouts: int,
    rng: torch.Generator,
    *,
    fused: bool | None = None,
) -> Tensor:
    """Complete every proper prefix of every sequence ``rollouts`` times.

    Parameters
    ----------
    states : (B, state_dim)
        After the histories.
    items : int64 (B, L)
        The sequences.
    fused
        As for :func:`recsys_llm.seqgan.sampling.draw`.

    Returns
    -------
    int64 (L - 1, rollouts, B, L)
        ``[t - 1, n, b]`` begins with the first t items of sequence b.
    """
    batch, length = items.shape
    group = rollouts * batch
    completed = items.expand(length - 1, rollouts, batch, length).clone()
    stepper = Stepper(policy, table, reads=batch * (length - 1) + group * (length - 1) * (length - 2) // 2)
    own, grown = stepper.open(states), stepper.room(group * (length - 1))
    for t in range(1, length):
        stepper.read(items[:, t - 1], own)
        completed[t - 1, :, :, t] = draw(own.queries, table, _uniforms(rng, batch, rollouts), fused=fused).items.T
        begun = grown.rows(slice(0, group * (t - 1)))
        drawn = draw(begun.queries, table, _uniforms(rng, len(begun.queries)), fused=fused).items
        completed[: t - 1, :, :, t] = drawn.view(t - 1, rollouts, batch)
        if t + 1 < length:
            grown.rows(slice(group * (t - 1), group * t)).copy_repeated(own, rollouts)
            stepper.read(completed[:t, :, :, t].flatten(), grown.rows(slice(0, group * t)))
    return completed


@torch.no_grad()
def rollout_rewards(
    policy: Generator,
    table: ItemTable,
    states: Tensor,
    items: Tensor,
    judge: Judge,
    rollouts: int,
    rng: torch.Generator,
    *,
    fused: bool | None = None,
) -> Tensor:
    """Return the reward of each item of each sequence, (B, L).

    A :class:`PrefixJudge` judges all completions at once. Any judge sees rows of the full length L; where a sequence
    ends before, it must look at no more than its length, and the rewards past that are meaningless.
    """
    batch, length = items.shape
    own = judge(items, torch.arange(batch, device=items.device))
    if length == 1:
        return own.unsqueeze(1)
    completed = complete_prefixes(policy, table, states, items, rollouts, rng, fused=fused)
    if isinstance(judge, PrefixJudge):
        judged = judge.completions(items, completed)
    else:
        rows = torch.arange(batch, device=items.device).expand(length - 1, rollouts, batch).flatten()
        judged = judge(completed.flatten(0, 2), rows).view(length - 1, rollouts, batch)
    return torch.cat([judged.mean(1).T, own.unsqueeze(1)], 1)
