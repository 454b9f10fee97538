from __future__ import annotations

import math
import zlib
from datetime import timedelta

import numpy as np
import pandas as pd
import pytest

from recsys_llm.errors import LeakageError, ModelError
from recsys_llm.ranking.evaluation import evaluate_full_catalogue
from tests.ranking.fake_history import FakeHistory, hour, world

START, END = hour(24 * 20), hour(24 * 38)
SERVICE = "ranker_baseline_v1"


class Constant:
    learned_until = START

    def score(self, batch):
        return np.zeros(len(batch), np.float32)


class Odd:
    """A fixed score for each user, item, user's and item's number of events: it shows what a ranker was given."""

    learned_until = START

    def score(self, batch):
        return np.array(
            [
                odd(batch.user.ids[user], batch.item.ids[item], mine, theirs)
                for user, item, mine, theirs in zip(
                    batch.user_rows,
                    batch.item_rows,
                    batch.scalar("user_stats__n_events"),
                    batch.scalar("item_stats__n_events"),
                    strict=True,
                )
            ],
            np.float32,
        )


def odd(user, item, mine, theirs):
    return zlib.crc32(f"{user} {item} {mine:.0f} {theirs:.0f}".encode()) / 2**32


class Echo:
    """Scores by position: a ranker that would profit from unshuffled candidates."""

    learned_until = START

    def __init__(self, sign):
        self.sign = sign

    def score(self, batch):
        return self.sign * np.arange(len(batch), dtype=np.float32)


def evaluate(rankers, interactions, items, **changes):
    settings = {"service": SERVICE, "start": START, "end": END, "events": 10_000} | changes
    return evaluate_full_catalogue(FakeHistory(interactions, items), rankers, interactions, items, **settings)


def oracle(interactions, items, drop_seen):
    """Return (user, item, time) -> (rank, candidates) by plain loops over everything."""
    known = dict(zip(items["item_id"], items["event_timestamp"], strict=True))
    rows = list(zip(interactions["user_id"], interactions["item_id"], interactions["event_timestamp"], strict=True))
    found, missed = {}, 0
    for user, item, at in rows:
        if not START < at <= END:
            continue
        day = at.replace(hour=0)
        if not known[item] < day:
            missed += 1
            continue
        removed = {i for u, i, t in rows if u == user and (t <= at if drop_seen else t == at)} - {item}
        mine = sum(u == user and t < at for u, _, t in rows) or math.nan
        scores = {
            candidate: odd(user, candidate, mine, sum(i == candidate and t < day for _, i, t in rows))
            for candidate, entered in known.items()
            if entered < day and candidate not in removed
        }
        found[(user, item, at)] = (1 + sum(score > scores[item] for score in scores.values()), len(scores))
    return found, missed


@pytest.mark.parametrize("drop_seen", [False, True])
def test_against_brute_force(drop_seen):
    interactions, items = world()
    expected, missed = oracle(interactions, items, drop_seen)
    result = evaluate({"odd": Odd()}, interactions, items, drop_seen=drop_seen)
    ranks = result.metrics["odd"]["rank"]
    found = {
        (user, item, at): (rank, count)
        for (user, item, at, count), rank in zip(result.events.itertuples(index=False), ranks, strict=True)
    }
    assert found == expected and len(expected) > 50
    assert result.not_in_catalogue == missed > 0
    assert result.period_events == len(expected) + missed
    assert result.means()["odd"]["mrr"] == pytest.approx(np.mean([1 / rank for rank, _ in expected.values()]))


def test_batches_and_portions_change_nothing(monkeypatch):
    interactions, items = world()
    rankers = {"odd": Odd(), "constant": Constant(), "first": Echo(-1)}
    whole = evaluate(rankers, interactions, items, events=40, batch_days=100)
    monkeypatch.setattr("recsys_llm.ranking.evaluation._PAIRS", 20)
    parts = evaluate(rankers, interactions, items, events=40, batch_days=1)
    pd.testing.assert_frame_equal(whole.events, parts.events)
    for name in rankers:
        pd.testing.assert_frame_equal(whole.metrics[name], parts.metrics[name])


def test_items_are_asked_for_once_a_day():
    interactions, items = world()
    history = FakeHistory(interactions, items)
    result = evaluate_full_catalogue(
        history, {"a": Constant(), "b": Odd()}, interactions, items, service=SERVICE, start=START, end=END, batch_days=4
    )
    days = result.events["event_timestamp"].dt.floor("D").nunique()
    asked = [count for entity, count in history.calls if entity == "item"]
    assert len(asked) == math.ceil(days / 4)
    assert sum(asked) <= days * len(items)


def test_position_and_constants_get_chance_level():
    interactions, items = world(events=900)
    result = evaluate({"constant": Constant(), "first": Echo(-1), "last": Echo(1)}, interactions, items)
    chance = np.minimum(10 / result.events["candidates"], 1).mean()
    error = 3 * math.sqrt(chance * (1 - chance) / len(result.events))
    for means in result.means().values():
        assert means["hr_at_10"] == pytest.approx(chance, abs=error)
    place = result.metrics["constant"]["rank"] / result.events["candidates"]
    assert place.mean() == pytest.approx(0.5 + 0.5 / result.events["candidates"].mean(), abs=0.05)


def test_sampling_is_seeded_and_without_replacement():
    interactions, items = world()
    one, same, other = (evaluate({"c": Constant()}, interactions, items, events=30, seed=s) for s in (0, 0, 1))
    pd.testing.assert_frame_equal(one.events, same.events)
    pd.testing.assert_frame_equal(one.metrics["c"], same.metrics["c"])
    assert not one.events.equals(other.events)
    assert len(one.events) == 30 == len(one.events.drop_duplicates())


def test_order_of_rows_changes_nothing():
    interactions, items = world()
    shuffled = interactions.sample(frac=1, random_state=5), items.iloc[::-1]
    one, other = evaluate({"odd": Odd()}, interactions, items), evaluate({"odd": Odd()}, *shuffled)
    pd.testing.assert_frame_equal(one.events, other.events)
    pd.testing.assert_frame_equal(one.metrics["odd"], other.metrics["odd"])


def test_difference_is_paired_and_by_user():
    interactions, items = world()
    result = evaluate({"a": Constant(), "b": Odd()}, interactions, items)
    interval = result.difference("a", "b", "mrr")
    assert interval.difference == pytest.approx(result.means()["b"]["mrr"] - result.means()["a"]["mrr"])
    assert interval.users == result.events["user_id"].nunique()
    assert result.difference("a", "a").ci95 == (0, 0)


def test_progress_reaches_the_total():
    interactions, items = world()
    seen = []
    evaluate({"a": Constant()}, interactions, items, events=25, progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen) and seen[-1] == (25, 25)


def test_refusals():
    interactions, items = world()
    late = Constant()
    late.learned_until = START + timedelta(microseconds=1)
    with pytest.raises(LeakageError, match="ranker 'late'"):
        evaluate({"late": late}, interactions, items)
    with pytest.raises(ModelError, match="nothing to evaluate: 0 events"):
        evaluate({"a": Constant()}, interactions, items, start=hour(9000), end=None)
    with pytest.raises(ModelError, match="at least one ranker"):
        evaluate({}, interactions, items)

    class Wrong(Constant):
        def score(self, batch):
            return np.zeros(3, np.float32)

    with pytest.raises(ModelError, match="scores, found shape"):
        evaluate({"wrong": Wrong()}, interactions, items)

    class Nan(Constant):
        def score(self, batch):
            return np.full(len(batch), np.nan, np.float32)

    with pytest.raises(ModelError, match="NaN"):
        evaluate({"nan": Nan()}, interactions, items)
