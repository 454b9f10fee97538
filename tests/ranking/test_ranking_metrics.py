from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_llm.bootstrap import paired_difference
from recsys_llm.errors import ModelError
from recsys_llm.ranking.metrics import hit_rate, ndcg, rank_of, reciprocal_rank


def test_metrics_against_hand_computed_values():
    ranks = np.array([1, 2, 7, 10, 11])
    assert ndcg(ranks, 10) == pytest.approx([1, 1 / math.log2(3), 1 / 3, 1 / math.log2(11), 0])
    assert hit_rate(ranks, 10).tolist() == [1, 1, 1, 1, 0]
    assert reciprocal_rank(ranks) == pytest.approx([1, 1 / 2, 1 / 7, 1 / 10, 1 / 11])
    assert hit_rate(ranks, 2).tolist() == [1, 1, 0, 0, 0]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=12), st.data())
def test_rank_lies_within_its_tie_and_does_not_depend_on_the_order(values, data):
    scores = np.array(values, np.float32)
    wanted = data.draw(st.integers(0, len(values) - 1))
    luck = data.draw(st.floats(0, 1, exclude_max=True))
    order = np.array(data.draw(st.permutations(range(len(values)))))
    rank = rank_of(scores, wanted, luck=luck)
    above = sum(value > values[wanted] for value in values)
    assert above < rank <= above + values.count(values[wanted])
    assert rank_of(scores[order], int(np.flatnonzero(order == wanted)[0]), luck=luck) == rank


def test_a_constant_scorer_gets_chance_level_wherever_the_wanted_item_stands():
    luck = np.random.default_rng(0).random(20_000)
    for wanted in (0, 49):
        ranks = np.array([rank_of(np.zeros(50), wanted, luck=one) for one in luck])
        assert np.bincount(ranks, minlength=51)[1:].min() > 300  # each of 50 ranks, 400 expected
        assert hit_rate(ranks, 10).mean() == pytest.approx(0.2, abs=0.01)


def test_a_nan_score_is_refused():
    with pytest.raises(ModelError, match="found 1 NaN"):
        rank_of(np.array([1.0, np.nan]), 0, luck=0.0)


def test_bootstrap_of_equal_rankers_is_zero():
    values = np.random.default_rng(0).random(50)
    result = paired_difference(values, values, np.arange(50) % 7)
    assert (result.difference, result.ci95, result.users) == (0.0, (0.0, 0.0), 7)


def test_bootstrap_agrees_with_the_normal_interval_where_each_user_has_one_event():
    rng = np.random.default_rng(1)
    gain = rng.normal(0.1, 1.0, 2000)
    result = paired_difference(np.zeros(2000), gain, np.arange(2000), seed=3)
    half = 1.96 * gain.std() / math.sqrt(2000)
    assert result.difference == pytest.approx(gain.mean())
    assert result.low == pytest.approx(gain.mean() - half, abs=0.1 * half)
    assert result.high == pytest.approx(gain.mean() + half, abs=0.1 * half)


def test_repeating_each_users_event_does_not_make_the_interval_narrower():
    gain = np.random.default_rng(2).normal(0.0, 1.0, 100)
    once = paired_difference(np.zeros(100), gain, np.arange(100))
    often = paired_difference(np.zeros(2000), np.repeat(gain, 20), np.repeat(np.arange(100), 20))
    assert often.ci95 == pytest.approx(once.ci95)
    pretended = paired_difference(np.zeros(2000), np.repeat(gain, 20), np.arange(2000))
    assert pretended.high - pretended.low < 0.3 * (often.high - often.low)


def test_bootstrap_is_seeded_and_follows_the_sign():
    rng = np.random.default_rng(4)
    before, after, users = rng.random(60), rng.random(60), rng.integers(0, 9, 60)
    assert paired_difference(before, after, users, seed=1) == paired_difference(before, after, users, seed=1)
    there, back = paired_difference(before, after, users), paired_difference(after, before, users)
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low))


@pytest.mark.parametrize(
    ("before", "after", "users", "resamples"),
    [([], [], [], 1000), ([0.0], [0.0, 1.0], ["a"], 1000), ([0.0], [np.nan], ["a"], 1000), ([0.0], [1.0], ["a"], 5)],
)
def test_bootstrap_refuses_what_has_no_interval(before, after, users, resamples):
    with pytest.raises(ModelError, match="expected"):
        paired_difference(np.array(before), np.array(after), np.array(users), resamples=resamples)
