"""Lists of sampled continuations: the share of an item is the probability that it comes within the next steps."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from recsys_llm.seqgan import Checkpoint, Histories, Vocabulary
from recsys_llm.seqgan.generator import logits
from recsys_llm.seqgan.rollout_lists import rollout_lists
from recsys_llm.seqgan.states import states_after

STEPS, SAMPLES = 3, 4000
ALL = np.array([0, 1, 2])


@pytest.fixture
def checkpoint(toy):
    manifest = {
        "chosen": "mle",
        "filter_seen": False,
        "trained_until": "2024-01-01T00:00:00+00:00",
        "text": None,
        "generator": {},
    }
    return Checkpoint.build(Vocabulary(tuple("abcd")), np.array([3, 1, 2, 1]), None, {"mle": toy.float()}, manifest)


@pytest.fixture
def histories():
    import pyarrow as pa

    users, items = pa.array(["u", "v"]), pa.array(["a", "b", "c"])
    return Histories(users, items, np.arange(4), np.array([0, 2, 3]), np.array([1, 2, 1]))


def exact_shares(model, state) -> np.ndarray:
    """Return the probability that each item is among the next steps, by all continuations."""
    table, shares = model.item_table(), np.zeros(4)
    with torch.no_grad():
        for continuation in product(range(4), repeat=STEPS):
            now, probability = state, 1.0
            for item in continuation:
                probability *= float(logits(model.queries_of(now), table).softmax(1)[0, item])
                now = model(table.vectors[item].view(1, 1, -1), now)[1]
            shares[list(set(continuation))] += probability
    return shares


def test_shares_are_the_probabilities_that_an_item_comes(checkpoint, histories):
    found = rollout_lists(checkpoint, histories, ALL, np.arange(3), 4, samples=SAMPLES, steps=STEPS, device="cpu")
    for row in range(3):
        states = states_after(checkpoint, histories, ALL[row : row + 1], device="cpu")
        expected = exact_shares(checkpoint.generator("chosen"), torch.from_numpy(states.vectors))
        shares = dict(zip(found.items[row].as_py(), found.shares[row].as_py(), strict=True))
        np.testing.assert_allclose([shares[item] for item in "abcd"], expected, atol=4 * 0.5 / SAMPLES**0.5)
        assert list(shares.values()) == sorted(shares.values(), reverse=True)


def test_a_row_does_not_depend_on_the_rows_beside_it(checkpoint, histories):
    together = rollout_lists(checkpoint, histories, ALL, np.arange(3), 4, samples=20, steps=STEPS, device="cpu")
    for row in range(3):
        one = np.array([row])
        alone = rollout_lists(checkpoint, histories, one, one, 4, samples=20, steps=STEPS, device="cpu")
        assert alone.items[0] == together.items[row] and alone.shares[0] == together.shares[row]
    other = rollout_lists(checkpoint, histories, ALL, np.arange(3) + 9, 4, samples=20, steps=STEPS, device="cpu")
    assert other.shares != together.shares


def test_items_that_the_user_has_had_are_left_out(checkpoint, histories):
    found = rollout_lists(
        checkpoint, histories, ALL[1:], np.arange(2), 2, samples=SAMPLES, steps=STEPS, filter_seen=True, device="cpu"
    )
    assert set(found.items[0].as_py()) == {"c", "d"}
    assert "c" not in found.items[1].as_py() and len(found.items[1]) == 2
