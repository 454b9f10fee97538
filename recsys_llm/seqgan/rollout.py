"""Monte-Carlo rollouts (Yu et al. 2017, equation 4): what is a prefix worth?

The reward of the item at step t is the discriminator's mean probability over N completions of the prefix that ends with
it; of the last item, the probability of the sequence itself. Every prefix is read once. Its state is then copied N
times, and the completions of all prefixes grow together::

    generated      x1 x2 x3
    prefix 1       x1  .  .      t = 1: sample 2nd items of prefix 1
    prefix 2       x1 x2  .      t = 2: sample 3rd items of prefixes 1 and 2, in one batch
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from recsys_llm.seqgan.generator import Generator, ItemTable, logits
from recsys_llm.seqgan.losses import block_rows

Judge = Callable[[Tensor, Tensor], Tensor]
"""(items (R, L), row in the batch of each (R,)) -> probability of being real (R,)."""


def sample_items(queries: Tensor, table: ItemTable, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw one item per query from the softmax, by its inverse distribution function.

    Returns
    -------
    items : int64 (n,)
    entropy : float (n,)
        Of each distribution, nats.
    """
    items, entropies = [], []
    for block in torch.split(queries, block_rows(len(table.bias))):
        scores = logits(block, table)
        log_probs = scores - scores.logsumexp(1, keepdim=True)
        probabilities = log_probs.exp()
        entropies.append(-(probabilities * log_probs).sum(1))
        cumulative = probabilities.cumsum(1)
        drawn = torch.rand(len(block), 1, generator=rng, device=block.device) * cumulative[:, -1:]
        found = torch.searchsorted(cumulative, drawn, right=True).squeeze(1)
        items.append(found.clamp_max(len(table.bias) - 1))
    return torch.cat(items), torch.cat(entropies)


def advance(policy: Generator, table: ItemTable, items: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
    """Read one more item per row: queries (n, E) and states (n, state_dim) after it."""
    queries, states = policy(table.vectors[items].unsqueeze(1), states)
    return queries.squeeze(1), states


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
    items, entropies = [], []
    for step in range(steps):
        drawn, entropy = sample_items(queries, table, rng)
        items.append(drawn)
        entropies.append(entropy)
        if step + 1 < steps:
            queries, states = advance(policy, table, drawn, states)
    return torch.stack(items, 1), torch.stack(entropies, 1)


@torch.no_grad()
def complete_prefixes(
    policy: Generator, table: ItemTable, states: Tensor, items: Tensor, rollouts: int, rng: torch.Generator
) -> Tensor:
    """Complete every proper prefix of every sequence ``rollouts`` times.

    Parameters
    ----------
    states : (B, state_dim)
        After the histories.
    items : int64 (B, L)
        The sequences.

    Returns
    -------
    int64 (L - 1, rollouts, B, L)
        ``[t - 1, n, b]`` begins with the first t items of sequence b.
    """
    batch, length = items.shape
    completed = items.expand(length - 1, rollouts, batch, length).clone()
    kept_states = states.new_empty(length - 1, rollouts, batch, states.shape[1])
    kept_queries = states.new_empty(length - 1, rollouts, batch, table.vectors.shape[1])
    for t in range(1, length):
        queries, states = advance(policy, table, items[:, t - 1], states)
        kept_states[t - 1], kept_queries[t - 1] = states, queries
        drawn, _ = sample_items(kept_queries[:t].flatten(0, 2), table, rng)
        completed[:t, :, :, t] = drawn.view(t, rollouts, batch)
        if t + 1 < length:
            queries_after, states_after = advance(policy, table, drawn, kept_states[:t].flatten(0, 2))
            kept_queries[:t] = queries_after.view(t, rollouts, batch, -1)
            kept_states[:t] = states_after.view(t, rollouts, batch, -1)
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
) -> Tensor:
    """Return the reward of each item of each sequence, (B, L).

    ``judge`` sees rows of the full length L; where a sequence ends before, it must look at no more than its length, and
    the rewards past that are meaningless.
    """
    batch, length = items.shape
    own = judge(items, torch.arange(batch, device=items.device))
    if length == 1:
        return own.unsqueeze(1)
    completed = complete_prefixes(policy, table, states, items, rollouts, rng)
    rows = torch.arange(batch, device=items.device).expand(length - 1, rollouts, batch).flatten()
    judged = judge(completed.flatten(0, 2), rows).view(length - 1, rollouts, batch)
    return torch.cat([judged.mean(1).T, own.unsqueeze(1)], 1)
