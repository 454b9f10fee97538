"""Rollouts as public ports of SeqGAN do them: every prefix is read from the start for every sample.

Softmax probabilities are stored, and ``torch.multinomial`` draws from them. One thing is kinder than the ports:
probabilities are computed only where an item is drawn, not also along the prefix.
"""

from __future__ import annotations

import torch
from torch import Tensor

from recsys_llm.seqgan.generator import Generator, ItemTable, logits
from recsys_llm.seqgan.rollout import Judge, advance


@torch.no_grad()
def complete_prefix(
    policy: Generator, table: ItemTable, states: Tensor, items: Tensor, known: int, rng: torch.Generator
) -> Tensor:
    """Return sequences, int64 (B, L), whose first ``known`` items are those of ``items``, the rest drawn."""
    for step in range(known):
        queries, states = advance(policy, table, items[:, step], states)
    sequence = list(items[:, :known].T)
    while len(sequence) < items.shape[1]:
        probabilities = torch.softmax(logits(queries, table), 1)
        sequence.append(torch.multinomial(probabilities, 1, generator=rng).squeeze(1))
        if len(sequence) < items.shape[1]:
            queries, states = advance(policy, table, sequence[-1], states)
    return torch.stack(sequence, 1)


@torch.no_grad()
def reference_rewards(
    policy: Generator,
    table: ItemTable,
    states: Tensor,
    items: Tensor,
    judge: Judge,
    rollouts: int,
    rng: torch.Generator,
) -> Tensor:
    """Return what :func:`recsys_llm.seqgan.rollout.rollout_rewards` returns, (B, L)."""
    batch, length = items.shape
    rows = torch.arange(batch, device=items.device)
    rewards = states.new_zeros(length, batch)
    for _ in range(rollouts):
        for known in range(1, length):
            rewards[known - 1] += judge(complete_prefix(policy, table, states, items, known, rng), rows)
        rewards[length - 1] += judge(items, rows)
    return rewards.T / rollouts
