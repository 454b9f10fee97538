from __future__ import annotations

from datetime import timedelta

import numpy as np
import pyarrow as pa
import pytest
import torch

from recsys_llm.errors import DataError, LeakageError
from recsys_llm.seqgan import Checkpoint, Histories, evaluate_next_items, next_items
from recsys_llm.seqgan.metrics import ndcg_and_hit_rate
from recsys_llm.seqgan.ranking import best_first
from tests.seqgan.seqgan_data import ITEMS, START, UNTIL, table


def test_metrics_by_hand() -> None:
    hits = np.zeros((4, 10), bool)
    hits[0, 0] = True  # one relevant item, first
    hits[1, [1, 3]] = True  # two of three relevant, at ranks 2 and 4
    hits[3, :] = True  # ten of twenty
    ndcg, hit = ndcg_and_hit_rate(hits, np.array([1, 3, 2, 20]))
    second = (1 / np.log2(3) + 1 / np.log2(5)) / (1 + 1 / np.log2(3) + 1 / np.log2(4))
    np.testing.assert_allclose(ndcg, [1.0, second, 0.0, 1.0])
    assert hit.tolist() == [1.0, 1.0, 0.0, 1.0]


def test_every_contestant_is_scored_as_by_brute_force(trained: Checkpoint) -> None:
    rows = [("a", f"i{number:02}", UNTIL + timedelta(days=number)) for number in range(5)]
    rows += [("b", "i01", START), ("b", "i09", UNTIL + timedelta(days=1)), ("b", "i10", UNTIL + timedelta(days=1))]
    rows += [("b", "unknown", UNTIL + timedelta(days=1)), ("c", "unknown", UNTIL + timedelta(days=9))]
    events = table(rows)
    histories = Histories.from_interactions(events)
    names = histories.item_ids.to_pylist()
    scores = evaluate_next_items(trained, events, start=UNTIL, end=UNTIL + timedelta(days=9), filter_seen=True)
    for name in ("mle", "adversarial"):
        after = next_items(trained, histories, np.arange(histories.groups), 10, filter_seen=True, generator=name)
        ndcg = []
        for group in range(histories.groups):
            if histories.timestamps[group] <= int(UNTIL.timestamp()) * 1_000_000:
                continue
            relevant = names[histories.group_offsets[group] : histories.group_offsets[group + 1]]
            if group in histories.user_offsets:  # a first group: predicted from nothing; only "c" has one in the period
                assert relevant == ["unknown"]
                ndcg.append(0.0)
                continue
            gains = [1 / np.log2(rank + 2) for rank, item in enumerate(after.item_ids[group - 1]) if item in relevant]
            ndcg.append(sum(gains) / sum(1 / np.log2(rank + 2) for rank in range(len(relevant))))
        assert len(ndcg) == 6
        assert scores[name]["ndcg_at_10"] == pytest.approx(np.mean(ndcg))
    assert scores["chosen"] == scores[trained.manifest["chosen"]]


def test_popularity_is_of_events_before_training_ended(trained: Checkpoint) -> None:
    order = np.argsort(-trained.counts, kind="stable")
    best, eleventh = (trained.vocabulary.item_ids[order[rank]] for rank in (0, 10))
    rows = [("a", best, UNTIL + timedelta(days=1)), ("b", eleventh, UNTIL + timedelta(days=1))]
    scores = evaluate_next_items(trained, table(rows), start=UNTIL, end=UNTIL + timedelta(days=2), filter_seen=False)
    assert scores["popularity"] == {"ndcg_at_10": 0.5, "hr_at_10": 0.5}
    rows.append(("b", best, UNTIL))  # seen: the eleventh moves up to rank 10
    scores = evaluate_next_items(trained, table(rows), start=UNTIL, end=UNTIL + timedelta(days=2), filter_seen=True)
    assert scores["popularity"]["hr_at_10"] == 1.0
    assert scores["popularity"]["ndcg_at_10"] == pytest.approx((1 + 1 / np.log2(11)) / 2)


def test_counts_hold_all_events_before_until(trained: Checkpoint, events: pa.Table) -> None:
    assert trained.counts.sum() == pa.compute.sum(pa.compute.less(events["event_timestamp"], UNTIL)).as_py()
    assert trained.counts[ITEMS:].tolist() == [0, 0]


def test_evaluation_on_training_data_is_refused(trained: Checkpoint, events: pa.Table) -> None:
    with pytest.raises(LeakageError, match="train until an earlier time"):
        evaluate_next_items(trained, events, start=UNTIL - timedelta(microseconds=1), end=UNTIL + timedelta(days=2))
    with pytest.raises(DataError, match="found none"):
        evaluate_next_items(trained, events, start=UNTIL + timedelta(days=300), end=UNTIL + timedelta(days=301))


def test_samples_are_drawn_under_a_seed(trained: Checkpoint, events: pa.Table) -> None:
    end = UNTIL + timedelta(days=30)
    one, again, other = (
        evaluate_next_items(trained, events, start=UNTIL, end=end, largest=40, seed=seed) for seed in (0, 0, 1)
    )
    assert one == again != other


def test_equal_scores_are_kept_in_order_of_index() -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 4, (40, 30)).astype(np.float32)
    scores[rng.random((40, 30)) < 0.2] = -np.inf
    values, items = best_first(torch.from_numpy(scores), 7)
    expected = np.argsort(-scores, axis=1, kind="stable")[:, :7]
    finite = np.isfinite(values.numpy())
    assert np.array_equal(items.numpy()[finite], expected[finite])
    assert np.array_equal(values.numpy(), np.take_along_axis(scores, expected, 1))
