from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from recsys_llm.seqgan import losses
from recsys_llm.seqgan.generator import Generator
from recsys_llm.seqgan.losses import weighted_nll
from recsys_llm.seqgan.policy import Position, advantages, queries_gradient_loss
from recsys_llm.seqgan.rollout import generate, rollout_rewards

SEQUENCES = torch.tensor(list(itertools.product(range(4), repeat=3)))
REWARDS = torch.rand(64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def after_start(policy: Generator, batch: int) -> tuple[Tensor, Tensor]:
    queries, states = policy(policy.start.expand(batch, 1, -1))
    return queries[:, 0], states


def exact_gradient(policy: Generator) -> Tensor:
    """Gradient of the expected reward, by enumeration of all 64 sequences."""
    policy.zero_grad()
    first, states = after_start(policy, 64)
    table = policy.item_table()
    later, _ = policy(table.vectors[SEQUENCES[:, :-1]], states)
    scores = torch.cat([first.unsqueeze(1), later], 1) @ table.vectors.T + table.bias
    log_p = scores.log_softmax(2).gather(2, SEQUENCES.unsqueeze(2)).sum((1, 2))
    (log_p.exp() * REWARDS).sum().backward()
    return flat_gradient(policy)


def flat_gradient(policy: Generator) -> Tensor:
    return torch.cat(
        [parameter.grad.flatten().clone() for parameter in policy.parameters() if parameter.grad is not None]
    )


@pytest.mark.parametrize("rollouts", [1, 4])
def test_the_estimator_has_the_exact_policy_gradient_as_its_mean(toy: Generator, rollouts: int) -> None:
    exact = exact_gradient(toy)
    rng = torch.Generator().manual_seed(1)
    total = torch.zeros_like(exact)
    for _ in range(6):
        toy.zero_grad()
        first, states = after_start(toy, 20_000)
        table = toy.item_table()
        items, _ = generate(toy, table, first.detach(), states.detach(), 3, rng)
        rewards = rollout_rewards(
            toy,
            table,
            states.detach(),
            items,
            lambda rows, _: REWARDS[rows @ torch.tensor([16, 4, 1])],
            rollouts,
            rng,
        )
        queries = Position(toy, table, first, states).queries(items)
        loss = queries_gradient_loss(queries, table, items, advantages(rewards, torch.ones_like(rewards) > 0))
        loss.backward()
        total -= flat_gradient(toy)
    estimate = total / 6
    assert float((estimate - exact).norm() / exact.norm()) < 0.08


def test_positions_past_a_length_have_no_gradient(toy: Generator) -> None:
    items = torch.tensor([[0, 1, 2], [3, 2, 1]])
    gradients = []
    for last in (2, 3):
        toy.zero_grad()
        changed = items.clone()
        changed[0, 2] = last
        first, states = after_start(toy, 2)
        valid = torch.tensor([[True, True, False], [True, True, True]])
        advantage = advantages(torch.rand(2, 3, generator=torch.Generator().manual_seed(5)).double(), valid)
        table = toy.item_table()
        queries = Position(toy, table, first, states).queries(changed)
        queries_gradient_loss(queries, table, changed, advantage).backward()
        gradients.append(flat_gradient(toy))
    torch.testing.assert_close(gradients[0], gradients[1])


def test_the_baseline_is_the_mean_of_the_others() -> None:
    rewards = torch.tensor([[1.0, 4.0], [2.0, 9.0], [6.0, 9.0]])
    valid = torch.tensor([[True, True], [True, False], [True, False]])
    assert advantages(rewards, valid).tolist() == [[-3.0, 3.5], [-1.5, 0.0], [4.5, 0.0]]


@pytest.mark.parametrize("block", [3, 1 << 20])
def test_the_fused_loss_and_its_gradient_are_those_of_plain_autograd(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "BLOCK_FLOATS", block * 7)
    rng = torch.Generator().manual_seed(0)
    plain = [torch.randn(*shape, generator=rng, dtype=torch.float64) for shape in ((10, 4), (7, 4), (7,))]
    fused = [value.clone().requires_grad_() for value in plain]
    plain = [value.requires_grad_() for value in plain]
    rows, targets = torch.randint(10, (15,), generator=rng), torch.randint(7, (15,), generator=rng)
    weights = torch.randn(15, generator=rng, dtype=torch.float64)  # advantages may be negative
    queries, table, bias = plain
    expected = -(weights * (queries @ table.T + bias).log_softmax(1)[rows, targets]).sum()
    (3 * expected).backward()
    loss = weighted_nll(*fused, rows=rows, targets=targets, weights=weights)
    (3 * loss).backward()
    torch.testing.assert_close(loss, expected)
    for ours, theirs in zip(fused, plain, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
