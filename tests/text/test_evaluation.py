"""Next-item retrieval against a brute-force oracle, and that what comes later changes nothing that came before."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_llm.errors import ModelError
from recsys_llm.text import evaluation
from recsys_llm.text.evaluation import (
    METRICS,
    NextItemPairs,
    evaluate_scores,
    evaluate_vectors,
    next_item_pairs,
    paired_interval,
)
from recsys_llm.timestamps import TIMESTAMP, to_micros
from tests.builders import hours

ITEMS = ["a", "b", "c", "d", "e", "f"]
ROWS = st.lists(
    st.tuples(st.sampled_from("uvw"), st.sampled_from(ITEMS), st.integers(0, 5), st.booleans()),
    max_size=30,
    unique_by=lambda row: row[:3],
)


def events(rows):
    users, items, times, liked = zip(*rows, strict=True) if rows else ((), (), (), ())
    columns = [pa.array(users, pa.string()), pa.array(items, pa.string())]
    columns += [pa.array([hours(time) for time in times], TIMESTAMP), pa.array(liked, pa.bool_())]
    return pa.table(columns, names=["user_id", "item_id", "event_timestamp", "liked"])


def group_before(rows, user, time):
    """Return the items that a user liked at the newest time before ``time``."""
    times = [row[2] for row in rows if row[0] == user and row[3] and row[2] < time]
    return {row[1] for row in rows if row[0] == user and row[3] and times and row[2] == max(times)}


@given(ROWS, st.integers(0, 5), st.integers(0, 6), st.integers(0, 6))
def test_pairs_are_those_of_the_definition(rows, start, end, until):
    found = next_item_pairs(events(rows), ITEMS, start=hours(start), end=hours(end), until=hours(until), per_user=None)
    users = sorted({row[0] for row in rows})
    expected = sorted(
        (users.index(user), to_micros(hours(time)), ITEMS.index(item))
        for user, item, time, liked in rows
        if liked and start <= time < end and group_before(rows, user, time) - {item}
    )
    assert sorted(zip(found.user.tolist(), found.time.tolist(), found.target.tolist(), strict=True)) == expected
    for query, target, user, time in zip(found.query, found.target, found.user, found.time, strict=True):
        hour = (int(time) - to_micros(hours(0))) // 3_600_000_000
        assert ITEMS[query] in group_before(rows, users[user], hour) - {ITEMS[target]}
    warm = {row[1] for row in rows if row[2] < until}
    assert found.cold_items.tolist() == [item not in warm for item in ITEMS]
    assert found.is_cold.tolist() == [ITEMS[target] not in warm for target in found.target]


@given(ROWS, st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_nothing(rows, random):
    shuffled = random.sample(rows, len(rows))
    one, other = (next_item_pairs(events(some), ITEMS, until=hours(3), per_user=2) for some in (rows, shuffled))
    assert one.query.tolist() == other.query.tolist()
    assert one.target.tolist() == other.target.tolist()


@given(ROWS, st.integers(0, 5))
def test_later_events_change_no_pair_from_before(rows, cut):
    before = [row for row in rows if row[2] < cut]
    whole = next_item_pairs(events(rows), ITEMS, end=hours(cut), until=hours(cut), per_user=None)
    part = next_item_pairs(events(before), ITEMS, end=hours(cut), until=hours(cut), per_user=None)
    assert whole.cold_items.tolist() == part.cold_items.tolist()
    assert len(whole) == len(part)
    assert whole.target.tolist() == part.target.tolist()


def test_record_batches_unknown_items_and_the_cap():
    table = events([("u", item, time, True) for time in range(40) for item in ("a", "b", "unknown")])
    batches = table.to_batches(max_chunksize=7)
    everything = next_item_pairs(batches, ITEMS, until=hours(9), per_user=None)
    assert len(everything) == 2 * 39
    capped = next_item_pairs(iter(batches), ITEMS, until=hours(9), per_user=10)
    assert len(capped) == 10
    assert (np.diff(capped.time) >= 0).all()
    rows = set(zip(everything.time.tolist(), everything.target.tolist(), strict=True))
    assert set(zip(capped.time.tolist(), capped.target.tolist(), strict=True)) < rows
    other = next_item_pairs(batches, ITEMS, until=hours(9), per_user=10, seed=1)
    assert capped.time.tolist() != other.time.tolist()
    assert len(next_item_pairs(events([]), ITEMS, until=hours(9))) == 0


def pairs_of(query, target, user, cold, items):
    cold_items = np.zeros(items, np.bool_)
    cold_items[list(cold)] = True
    arrays = [np.array(values, np.int64) for values in (query, target, user)]
    return NextItemPairs(*arrays, np.arange(len(query)), cold_items)


def oracle(scores, query, target, candidates):
    """Return the rank of a target, counted one candidate at a time."""
    before = 0
    for item in candidates:
        if item in (query, target):
            continue
        before += scores[item] > scores[target] or (scores[item] == scores[target] and item < target)
    return before


@settings(deadline=None)
@given(st.data())
def test_figures_are_those_of_the_definition(data):
    items = data.draw(st.integers(2, 9))
    vectors = np.array(
        data.draw(st.lists(st.lists(st.integers(-2, 2), min_size=2, max_size=2), min_size=items, max_size=items)),
        np.float32,
    )
    item = st.integers(0, items - 1)
    drawn = data.draw(st.lists(st.tuples(item, item, st.integers(3, 5)).filter(lambda p: p[0] != p[1]), min_size=1))
    query, target, user = (list(column) for column in zip(*drawn, strict=True))
    cold = data.draw(st.sets(item))
    k = data.draw(st.integers(1, 4))
    pairs = pairs_of(query, target, user, cold, items)
    found = evaluate_vectors(vectors, pairs, k=k)
    scores = vectors @ vectors.T
    assert found.users.tolist() == sorted(set(user))
    for row, name in enumerate(found.users.tolist()):
        own = [(q, t) for q, t, u in drawn if u == name]
        ranks = [oracle(scores[q], q, t, range(items)) for q, t in own]
        assert found.recall[row] == pytest.approx(np.mean([rank < k for rank in ranks]))
        gains = [1 / np.log2(rank + 2) if rank < 10 else 0 for rank in ranks]
        assert found.ndcg[row] == pytest.approx(np.mean(gains))
        is_cold = [t in cold for _, t in own]
        if not any(is_cold):
            assert np.isnan(found.cold_recall[row])
            assert np.isnan(found.cold_recall_among_cold[row])
            continue
        hits = [rank < k for rank, of_cold in zip(ranks, is_cold, strict=True) if of_cold]
        assert found.cold_recall[row] == pytest.approx(np.mean(hits))
        hits = [oracle(scores[q], q, t, sorted(cold)) < k for q, t in own if t in cold]
        assert found.cold_recall_among_cold[row] == pytest.approx(np.mean(hits))


def test_blocks_of_any_size_give_the_same(monkeypatch):
    rng = np.random.default_rng(0)
    query = rng.integers(0, 50, 300)
    target = (query + rng.integers(1, 49, 300)) % 50
    pairs = pairs_of(query, target, rng.integers(0, 9, 300), range(0, 50, 3), 50)
    vectors = rng.normal(size=(50, 8)).astype(np.float32)
    whole = evaluate_vectors(vectors, pairs, k=5)
    asked = []
    monkeypatch.setattr(evaluation, "_CELLS", 3 * 50)

    def scorer(rows):
        asked.append(len(rows))
        return vectors[rows] @ vectors.T

    parts = evaluate_scores(scorer, pairs, k=5)
    assert max(asked) == 3
    for metric in METRICS:
        assert np.allclose(whole.values(metric), parts.values(metric), equal_nan=True)


def test_equal_vectors_are_ties_whatever_the_matrix_product_rounds():
    rng = np.random.default_rng(1)
    vectors = np.repeat(rng.normal(size=(1, 383)).astype(np.float32), 131, axis=0)
    pairs = pairs_of([0, 0], [20, 21], [0, 1], (), 131)
    assert evaluate_vectors(vectors, pairs).recall.tolist() == [1.0, 0.0]


def test_intervals_resample_users_and_compare_the_same_ones():
    pairs = pairs_of([0, 0, 1, 2], [1, 2, 2, 0], [7, 7, 8, 9], [2], 3)
    base = evaluate_vectors(np.eye(3, dtype=np.float32), pairs, k=1)
    best = evaluate_vectors(np.array([[1, 0], [0.9, 1], [0.1, 2]], np.float32), pairs, k=1)
    found = paired_interval(base, best, "recall")
    assert found.users == 3
    assert found.difference == pytest.approx(best.mean("recall") - base.mean("recall"))
    assert paired_interval(base, best, "cold_recall").users == 2
    assert base.interval("recall").difference == pytest.approx(base.mean("recall"))
    assert set(base.as_dict()) == {"recall_at_1", "ndcg_at_10", "cold_recall_at_1", "cold_recall_among_cold_at_1"}
    warm = evaluate_vectors(np.eye(3, dtype=np.float32), pairs_of([0], [1], [0], (), 3))
    assert warm.mean("cold_recall") is None
    assert warm.interval("cold_recall") is None
    assert paired_interval(warm, warm, "cold_recall") is None
    with pytest.raises(ModelError, match="same pairs"):
        paired_interval(base, warm)


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (np.zeros((2, 4), np.float32), r"shape \(3, dim\).*found shape \(2, 4\)"),
        (np.full((3, 4), np.nan, np.float32), "12 values not finite"),
    ],
)
def test_vectors_that_do_not_fit_are_refused(vectors, message):
    with pytest.raises(ModelError, match=message):
        evaluate_vectors(vectors, pairs_of([0], [1], [0], (), 3))
    with pytest.raises(ModelError, match="expected pairs"):
        evaluate_vectors(np.zeros((3, 4), np.float32), pairs_of([], [], [], (), 3))
