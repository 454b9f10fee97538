"""The contrastive loss and its masks, against loops over single pairs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_llm.text.contrastive import contrastive_loss, false_negatives, log_frequencies, pair_keys

B, DIM = 5, 3


def drawn(seed, *shape):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def entropy(query, target, temperature, log_q, masked):
    """Return the loss, one logit at a time."""
    total = 0.0
    for i in range(len(query)):
        logits = {}
        for j in range(len(target)):
            if i == j or not masked[i, j]:
                logits[j] = float(query[i] @ target[j]) / temperature - float(log_q[j])
        total += math.log(sum(math.exp(value) for value in logits.values())) - logits[i]
    return total / len(query)


@settings(deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.05, 0.5, 2.0]), st.booleans(), st.booleans())
def test_loss_is_that_of_the_definition(seed, temperature, corrected, both):
    query, target = drawn(seed, B, DIM), drawn(seed + 1, B, DIM)
    log_q, query_log_q = -drawn(seed + 2, B).abs(), -drawn(seed + 3, B).abs()
    masked = drawn(seed + 4, B, B) > 0.5
    zeros = torch.zeros(B)
    found = contrastive_loss(
        query,
        target,
        temperature=temperature,
        log_q=log_q if corrected else None,
        masked=masked,
        query_log_q=query_log_q if corrected else None,
        both_directions=both,
    )
    expected = entropy(query, target, temperature, log_q if corrected else zeros, masked)
    if both:
        back = entropy(target, query, temperature, query_log_q if corrected else zeros, masked.T)
        expected = (expected + back) / 2
    assert float(found) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("is_corrected", "best"), [(True, [0, 0, 0]), (False, [0, 2, 2])])
def test_the_correction_finds_what_is_likely_not_what_is_unusual(is_corrected, best):
    """The best scores are log p(target | query) with it, and log p(target | query) / p(target) without."""
    joint = np.array([[0.30, 0.05, 0.05], [0.15, 0.05, 0.10], [0.15, 0.05, 0.10]])
    query, target = np.unravel_index(np.random.default_rng(0).choice(9, size=60_000, p=joint.ravel()), (3, 3))
    scores = torch.zeros(3, 3, requires_grad=True)
    log_q = torch.from_numpy(np.log(joint.sum(axis=0)).astype(np.float32))
    optimiser = torch.optim.Adam([scores], lr=0.03)
    for step in range(200):
        rows = np.random.default_rng(step).integers(0, len(query), 256)
        asked, found = torch.from_numpy(query[rows]), torch.from_numpy(target[rows])
        loss = contrastive_loss(
            scores[asked],
            torch.eye(3)[found],
            temperature=1.0,
            log_q=log_q[found] if is_corrected else None,
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert scores.detach().argmax(dim=1).tolist() == best


def test_the_own_target_is_never_masked():
    query, target = drawn(0, B, DIM), drawn(1, B, DIM)
    loss = contrastive_loss(query, target, temperature=0.1, masked=torch.ones(B, B, dtype=torch.bool))
    assert float(loss) == 0.0


@given(st.data())
def test_false_negatives_are_those_of_the_definition(data):
    items, users, count = 6, 3, data.draw(st.integers(1, 6))
    item, user = st.integers(0, items - 1), st.integers(0, users - 1)
    column = {"min_size": count, "max_size": count}
    target = data.draw(st.lists(item, **column))
    query = data.draw(st.lists(st.integers(-1, items - 1), **column))
    who = data.draw(st.lists(user, **column))
    text = [place // 2 for place in range(items)]  # two items share each text
    seen = data.draw(st.sets(st.tuples(user, item)))
    positives = data.draw(st.sets(st.tuples(item, item)))

    def keys(pairs):
        first, second = (np.array([pair[side] for pair in pairs], np.int64) for side in (0, 1))
        return pair_keys(first, second, items)

    found = false_negatives(
        user=np.array(who),
        query_item=np.array(query),
        target=np.array(target),
        target_text=np.array([text[place] for place in target]),
        items=items,
        seen=keys(seen),
        positives=keys(positives),
    )
    for i in range(count):
        for j in range(count):
            expected = text[target[i]] == text[target[j]] or (who[i], target[j]) in seen
            assert found[i, j] == (expected or (query[i], target[j]) in positives)


def test_frequencies():
    assert np.exp(log_frequencies(np.array([3, 1, 3, 3]))).tolist() == pytest.approx([0.75, 0.25, 0.75, 0.75])
    assert log_frequencies(np.array([], np.int64)).tolist() == []
