"""Mistakes that are known from published ports of SeqGAN: each makes a check fail that the real code passes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from recsys_llm.seqgan import estimators
from recsys_llm.seqgan.discriminator import GRUDiscriminator, judge_of
from recsys_llm.seqgan.estimators import Rollouts, Turn
from recsys_llm.seqgan.generator import Generator, ItemTable, logits
from recsys_llm.seqgan.rollout import rollout_rewards, sample_items
from tests.seqgan.test_estimators import ITEMS, certain, hundreds, opening

Sample = Callable[[Tensor, ItemTable, torch.Generator], tuple[Tensor, Tensor]]


def check_rewards(policy: Generator) -> None:
    own = opening(policy, 2)
    estimate = Rollouts(3)(Turn(own, ITEMS, torch.tensor([3, 3]), hundreds), own, torch.Generator().manual_seed(0))
    assert estimate.rewards.tolist() == [[22.0, 12.0, 13.0], [1322.0, 1302.0, 1301.0]]


def test_a_scrambled_reshape_is_caught(toy: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    check_rewards(certain(toy))

    def scrambled(*arguments: Any) -> Tensor:
        rewards = rollout_rewards(*arguments)
        return rewards.T.reshape(rewards.shape)  # (L, B) read as (B, L)

    monkeypatch.setattr(estimators, "rollout_rewards", scrambled)
    with pytest.raises(AssertionError):
        check_rewards(toy)


def check_sampling(sample: Sample) -> None:
    table = ItemTable(torch.eye(4), torch.zeros(4))
    query = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    drawn, _ = sample(query.repeat(40_000, 1), table, torch.Generator().manual_seed(0))
    seen = torch.bincount(drawn, minlength=4) / len(drawn)
    torch.testing.assert_close(seen, query.softmax(1)[0], atol=0.01, rtol=0)


def test_a_forgotten_exp_in_sampling_is_caught() -> None:
    check_sampling(sample_items)

    def from_log_probs(queries: Tensor, table: ItemTable, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        weights = logits(queries, table).log_softmax(1)
        weights = weights - weights.min(1, keepdim=True).values
        return torch.multinomial(weights, 1, generator=rng).squeeze(1), weights.sum(1)

    with pytest.raises(AssertionError):
        check_sampling(from_log_probs)


def judged(discriminator: GRUDiscriminator) -> Tensor:
    """What a discriminator that was just trained says of three continuations."""
    discriminator.train()
    return judge_of(discriminator, torch.zeros(3, 4), torch.tensor([3, 2, 3]))(
        torch.tensor([[0, 1, 2], [3, 4, 0], [1, 1, 1]]), torch.arange(3)
    )


@pytest.fixture
def discriminator() -> GRUDiscriminator:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return GRUDiscriminator(5, None, dim=4, dropout=0.5)


def check_probabilities(discriminator: GRUDiscriminator) -> None:
    rewards = judged(discriminator)
    with torch.no_grad():
        scores = discriminator.eval()(
            torch.zeros(3, 4), torch.tensor([[0, 1, 2], [3, 4, 0], [1, 1, 1]]), torch.tensor([3, 2, 3])
        )
    torch.testing.assert_close(rewards, 1 / (1 + (-scores).exp()))


def check_constant(discriminator: GRUDiscriminator) -> None:
    assert torch.equal(judged(discriminator), judged(discriminator))


def check_no_autograd(discriminator: GRUDiscriminator) -> None:
    assert not judged(discriminator).requires_grad


CHECKS = (check_probabilities, check_constant, check_no_autograd)


def test_the_real_judge_passes(discriminator: GRUDiscriminator) -> None:
    for check in CHECKS:
        check(discriminator)


def test_a_forgotten_exp_in_the_reward_is_caught(
    discriminator: GRUDiscriminator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "sigmoid", lambda scores: scores)
    with pytest.raises(AssertionError):
        check_probabilities(discriminator)


def test_a_discriminator_left_in_train_mode_is_caught(
    discriminator: GRUDiscriminator, monkeypatch: pytest.MonkeyPatch
) -> None:
    discriminator.train()
    monkeypatch.setattr(GRUDiscriminator, "train", lambda self, mode=True: self)
    with pytest.raises(AssertionError):
        check_constant(discriminator)


def test_autograd_left_on_is_caught(discriminator: GRUDiscriminator, monkeypatch: pytest.MonkeyPatch) -> None:
    class Nothing(contextlib.ContextDecorator):
        def __enter__(self) -> None: ...
        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(torch, "no_grad", Nothing)
    with pytest.raises(AssertionError):
        check_no_autograd(discriminator)
