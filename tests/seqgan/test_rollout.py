from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from recsys_llm.seqgan import rollout
from recsys_llm.seqgan.generator import Generator, logits
from recsys_llm.seqgan.rollout import complete_prefixes, generate, rollout_rewards, sample_items


def history(policy: Generator, batch: int) -> tuple[Tensor, Tensor]:
    """Queries and states after `batch` different histories."""
    groups = torch.randn(batch, 2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    queries, states = policy(groups)
    return queries[:, -1], states


def log_probs_of(policy: Generator, first: Tensor, states: Tensor, items: Tensor) -> Tensor:
    """log p of each item (B, L), by one pass over the whole sequences."""
    table = policy.item_table()
    later, _ = policy(table.vectors[items[:, :-1]], states)
    scores = torch.cat([first.unsqueeze(1), later], 1) @ table.vectors.T + table.bias
    return scores.log_softmax(2).gather(2, items.unsqueeze(2)).squeeze(2)


@torch.no_grad()
def test_cached_states_give_what_reading_each_prefix_again_gives(
    toy: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, states = history(toy, 3)
    table = toy.item_table()
    asked: list[Tensor] = []
    real = rollout.draw
    monkeypatch.setattr(rollout, "draw", lambda q, *rest, **how: (asked.append(q.clone()), real(q, *rest, **how))[1])
    items = torch.randint(4, (3, 5), generator=torch.Generator().manual_seed(0))
    completed = complete_prefixes(toy, table, states, items, 2, torch.Generator().manual_seed(2))
    assert completed.shape == (4, 2, 3, 5)
    for t in range(1, 5):
        assert torch.equal(completed[t - 1, :, :, :t], items[:, :t].expand(2, 3, t))
        fresh, begun = asked[2 * t - 2], asked[2 * t - 1]
        rows = completed[:t].flatten(0, 2)
        queries = torch.cat([begun, fresh.repeat(2, 1)])
        again, _ = toy(table.vectors[rows[:, :t]], states.repeat(t * 2, 1))
        torch.testing.assert_close(queries, again[:, -1])
        cached = logits(queries, table).log_softmax(1).gather(1, rows[:, t : t + 1]).squeeze(1)
        full = log_probs_of(toy, first.repeat(t * 2, 1), states.repeat(t * 2, 1), rows)[:, t]
        torch.testing.assert_close(cached, full)


@torch.no_grad()
def test_completions_have_the_exact_distribution(toy: Generator) -> None:
    first, states = history(toy, 1)
    items = torch.tensor([[2, 0, 0]])
    drawn = complete_prefixes(toy, toy.item_table(), states, items, 40_000, torch.Generator().manual_seed(0))[0, :, 0]
    for pair in itertools.product(range(4), repeat=2):
        sequence = torch.tensor([[2, *pair]])
        exact = log_probs_of(toy, first, states, sequence)[0, 1:].sum().exp()
        seen = (drawn[:, 1:] == torch.tensor(pair)).all(1).double().mean()
        assert float(seen) == pytest.approx(float(exact), abs=0.01), pair


@torch.no_grad()
def test_generation_has_the_exact_distribution_and_entropy(toy: Generator) -> None:
    first, states = history(toy, 1)
    rng = torch.Generator().manual_seed(0)
    drawn, entropy = generate(toy, toy.item_table(), first.repeat(40_000, 1), states.repeat(40_000, 1), 2, rng)
    exact = logits(first, toy.item_table()).softmax(1)[0]
    seen = torch.bincount(drawn[:, 0], minlength=4) / len(drawn)
    torch.testing.assert_close(seen.double(), exact, atol=0.01, rtol=0)
    assert float(entropy[0, 0]) == pytest.approx(float(-(exact * exact.log()).sum()))
    for one in range(4):
        after = drawn[drawn[:, 0] == one, 1]
        sequence = torch.tensor([[one, 1]])
        exact_after = log_probs_of(toy, first, states, sequence)[0, 1].exp()
        assert float((after == 1).double().mean()) == pytest.approx(float(exact_after), abs=0.03)


@torch.no_grad()
def test_rewards_of_known_completions_are_those_computed_by_hand(toy: Generator) -> None:
    toy.bias[2] = 1e4  # every completion is 2, 2, ...
    _, states = history(toy, 2)
    seen = []

    def judge(items: Tensor, rows: Tensor) -> Tensor:
        seen.append(items.shape)
        return (items * torch.tensor([100, 10, 1])).sum(1) + 1000.0 * rows

    items = torch.tensor([[0, 1, 3], [3, 0, 1]])
    rewards = rollout_rewards(toy, toy.item_table(), states, items, judge, 4, torch.Generator().manual_seed(0))
    # prefix 1 -> (0,2,2), (3,2,2); prefix 2 -> (0,1,2), (3,0,2); the whole -> (0,1,3), (3,0,1), judged as it is
    assert rewards.tolist() == [[22.0, 12.0, 13.0], [1322.0, 1302.0, 1301.0]]
    assert seen == [(2, 3), (2 * 4 * 2, 3)]


@torch.no_grad()
def test_a_continuation_of_one_item_is_judged_itself(toy: Generator) -> None:
    _, states = history(toy, 2)
    rewards = rollout_rewards(
        toy, toy.item_table(), states, torch.tensor([[1], [3]]), lambda x, _: x[:, 0] / 4, 5, torch.Generator()
    )
    assert rewards.tolist() == [[0.25], [0.75]]


@torch.no_grad()
def test_items_of_no_probability_are_never_drawn(toy: Generator) -> None:
    table = toy.item_table()
    bias = torch.tensor([-1e9, 0.0, -1e9, -1e9], dtype=torch.float64)
    queries = torch.zeros(500, 3, dtype=torch.float64)
    items, entropy = sample_items(queries, table._replace(bias=bias), torch.Generator().manual_seed(0))
    assert items.unique().tolist() == [1]
    assert np.allclose(entropy, 0.0)
