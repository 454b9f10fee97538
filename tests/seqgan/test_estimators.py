"""Every estimator against the exact policy gradient of a toy (V = 4, T = 3), and against values computed by hand."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from recsys_llm.seqgan.estimators import Estimator, Reinforce, Rollouts, Turn, later_sums, make_estimator
from recsys_llm.seqgan.generator import Generator
from recsys_llm.seqgan.policy import Position, prefix_advantages
from recsys_llm.seqgan.rollout import generate

LENGTH = 3
PLACES = torch.tensor([16, 4, 1])
BATCH = 20_000
LENGTHS = torch.tensor([3, 2]).repeat(BATCH // 2)
"""Every other continuation ends one item before; its reward may not depend on the item after."""
REWARDS = torch.rand(2, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def opening(policy: Generator, batch: int) -> Position:
    queries, states = policy(policy.start.expand(batch, 1, -1))
    return Position(policy, policy.item_table(), queries[:, 0], states)


def log_probs(policy: Generator, items: Tensor) -> Tensor:
    """log p of each item, (n, L), by plain autograd."""
    position = opening(policy, len(items))
    scores = position.queries(items) @ position.table.vectors.T + position.table.bias
    return scores.log_softmax(2).gather(2, items.unsqueeze(2)).squeeze(2)


def flat_gradient(policy: Generator) -> Tensor:
    return torch.cat([value.grad.flatten().clone() for value in policy.parameters() if value.grad is not None])


def judge(items: Tensor, rows: Tensor) -> Tensor:
    """A known reward of the first two or three items."""
    short = LENGTHS[rows] == 2
    cut = torch.where(short.unsqueeze(1) & (torch.arange(LENGTH) == 2), 0, items)
    return REWARDS[short.long(), cut @ PLACES]


def exact_gradient(policy: Generator, reward: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Gradient of the expected reward by enumeration, averaged over both lengths."""
    policy.zero_grad()
    for length in (2, 3):
        items = torch.tensor(list(itertools.product(range(4), repeat=length)))
        probability = log_probs(policy, items).sum(1).exp()
        ((probability * reward(items, length)).sum() / 2).backward()
    return flat_gradient(policy)


def estimated_gradient(policy: Generator, estimator: Estimator, target: Generator | None, repeats: int) -> Tensor:
    rng = torch.Generator().manual_seed(1)
    lagged = copy.deepcopy(policy)
    total = torch.zeros(0)
    for _ in range(repeats):
        policy.zero_grad()
        own = opening(policy, BATCH)
        items, _ = generate(policy, own.table, own.first.detach(), own.states.detach(), LENGTH, rng)
        with torch.no_grad():
            aim = None if target is None else opening(target, BATCH)
            turn = Turn(own, items, LENGTHS, judge, aim)
            rollout_policy = opening(lagged, BATCH)
        estimate = estimator(turn, rollout_policy, rng)
        assert not estimate.rewards.requires_grad
        estimate.loss.backward()
        gradient = flat_gradient(policy)
        total = gradient if not len(total) else total + gradient
    assert all(value.grad is None for value in lagged.parameters())
    return -total / repeats


@pytest.mark.parametrize(
    "estimator",
    [Rollouts(1), Rollouts(4), Rollouts(1, "prefix"), Rollouts(4, "prefix"), Reinforce()],
    ids=["rollouts 1", "rollouts 4", "prefix 1", "prefix 4", "reinforce"],
)
def test_the_mean_of_every_estimator_is_the_exact_policy_gradient(toy: Generator, estimator: Estimator) -> None:
    def reward(items: Tensor, length: int) -> Tensor:
        return REWARDS[int(length == 2), items @ PLACES[:length]]

    exact = exact_gradient(toy, reward)
    estimate = estimated_gradient(toy, estimator, None, repeats=6)
    assert float((estimate - exact).norm() / exact.norm()) < 0.08


def test_the_density_ratio_gradient_is_the_exact_one(toy: Generator) -> None:
    target = copy.deepcopy(toy)
    generator = torch.Generator().manual_seed(7)
    for parameter in target.parameters():
        parameter.data += 0.5 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)

    def reward(items: Tensor, length: int) -> Tensor:
        return (log_probs(target, items) - log_probs(toy, items)).sum(1)

    exact = exact_gradient(toy, reward)
    target.zero_grad()
    estimate = estimated_gradient(toy, Reinforce(), target, repeats=4)
    assert float((estimate - exact).norm() / exact.norm()) < 0.03
    assert all(value.grad is None for value in target.parameters())


def test_a_generator_that_equals_its_target_has_no_gradient(toy: Generator) -> None:
    own = opening(toy, 8)
    items = torch.randint(4, (8, 3), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        target = opening(toy, 8)
    estimate = Reinforce()(Turn(own, items, torch.full((8,), 3), judge, target), target, torch.Generator())
    estimate.loss.backward()
    assert float(flat_gradient(toy).abs().max()) < 1e-12
    assert torch.equal(estimate.rewards, torch.full((8, 3), 0.5, dtype=torch.float64))


def certain(policy: Generator) -> Generator:
    """Make a policy that always goes on with item 2."""
    policy.bias.data[2] = 1e4
    return policy


def hundreds(items: Tensor, rows: Tensor) -> Tensor:
    """A reward that shows the items it was given, and whose they are."""
    return (items * torch.tensor([100, 10, 1])).sum(1).double() + 1000 * rows


ITEMS = torch.tensor([[0, 1, 3], [3, 0, 1]])


def test_reward_tensors_are_those_computed_by_hand(toy: Generator) -> None:
    own = opening(certain(toy), 2)
    turn = Turn(own, ITEMS, torch.tensor([3, 3]), hundreds)
    with torch.no_grad():
        lagged = opening(toy, 2)
    rng = torch.Generator().manual_seed(0)
    # completions of x1 and of x1 x2 go on with 2; the last column is the sequence itself
    expected = [[22.0, 12.0, 13.0], [1322.0, 1302.0, 1301.0]]
    for baseline in ("position", "prefix"):
        assert Rollouts(3, baseline)(turn, lagged, rng).rewards.tolist() == expected
    assert Reinforce()(turn, lagged, rng).rewards.tolist() == [[13.0] * 3, [1301.0] * 3]


def test_the_free_baseline_is_the_value_of_the_prefix_without_the_item() -> None:
    values = torch.tensor([[22.0, 12.0, 13.0], [1322.0, 1302.0, 1301.0]])
    valid = torch.tensor([[True, True, True], [True, True, False]])
    assert prefix_advantages(values, valid).tolist() == [[-1300.0, -10.0, 1.0], [1300.0, -20.0, 0.0]]


def test_what_an_item_is_worth_later_leaves_itself_out() -> None:
    assert later_sums(torch.tensor([[1.0, 2.0, 4.0], [0.5, 0.0, 3.0]])).tolist() == [[6.0, 4.0, 0.0], [3.0, 3.0, 0.0]]


def test_estimators_have_names() -> None:
    assert make_estimator("rollouts", rollouts=5) == Rollouts(5, "position")
    assert make_estimator("rollouts_baseline", rollouts=5) == Rollouts(5, "prefix")
    assert make_estimator("reinforce", rollouts=5) == Reinforce()
