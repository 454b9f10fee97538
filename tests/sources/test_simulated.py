"""The simulated catalogue: the same numbers give the same rows, and there is something to learn in them."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from recsys_llm import sources
from recsys_llm.config import Config, InteractionsConfig, ItemsConfig, SourcesConfig
from recsys_llm.sources import write_simulated
from recsys_llm.sources.simulated import START

SMALL: dict[str, Any] = {"users": 20, "items": 100, "days": 30}


def theme(text: str) -> str:
    return text.partition("about ")[2].partition(",")[0]


@pytest.fixture(scope="module")
def tables(simulated_data: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    files = (simulated_data / "items.parquet", simulated_data / "interactions.parquet")
    items, events = (pq.read_table(file).to_pylist() for file in files)
    return items, events


def test_one_seed_gives_the_same_bytes_and_another_seed_other_rows(tmp_path: Path) -> None:
    folders = [write_simulated(tmp_path / name, seed=seed, **SMALL) for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    for name in ("items.parquet", "interactions.parquet"):
        first, second, other = ((folder / name).read_bytes() for folder in folders)
        assert first == second != other
    assert sorted(path.name for path in folders[0].iterdir()) == ["interactions.parquet", "items.parquet"]


@pytest.mark.parametrize(("name", "value"), [("users", 0), ("items", 79), ("days", 1)])
def test_too_few_are_refused(tmp_path: Path, name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected at least .*, found {value}"):
        write_simulated(tmp_path / "x", **{**SMALL, name: value})
    assert not (tmp_path / "x").exists()


def test_it_is_read_by_the_canonical_tables(simulated_data: Path, tables: Any) -> None:
    keys = {"rating": "rating", "liked_from": 4.0, "price": "price"}
    config = Config(
        sources=SourcesConfig(
            items=ItemsConfig(parquet="items.parquet"),
            interactions=InteractionsConfig(parquet="interactions.parquet", **keys),
        ),
        root=simulated_data,
    )
    assert sum(batch.num_rows for batch in sources.items(config)) == 120
    assert sum(batch.num_rows for batch in sources.interactions(config)) == len(tables[1])


def test_no_item_is_had_before_it_is_out_or_outside_the_period(tables: Any) -> None:
    items, events = tables
    released = {item["item_id"]: item["event_timestamp"] for item in items}
    end = START + timedelta(days=120)
    assert all(max(START, released[e["item_id"]]) <= e["event_timestamp"] < end for e in events)
    assert any(time > START for time in released.values())


def test_it_has_the_hazards_of_real_data(tables: Any) -> None:
    _, events = tables
    ties = Counter((event["user_id"], event["event_timestamp"]) for event in events)
    assert 0.2 < sum(count for count in ties.values() if count > 1) / len(events) < 0.8
    assert 0 < sum(event["rating"] is None for event in events) / len(events) < 0.3
    assert len({event["user_id"] for event in events}) == 60
    assert 1 in Counter(event["user_id"] for event in events).values()


def test_the_next_theme_can_be_learnt(tables: Any) -> None:
    items, events = tables
    themes = {item["item_id"]: theme(item["text"]) for item in items}
    histories = defaultdict(list)
    for event in events:
        histories[event["user_id"]].append((event["event_timestamp"], themes[event["item_id"]]))
    steps: dict[str, Counter[str]] = defaultdict(Counter)
    for history in histories.values():
        for (before, first), (after, second) in zip(history, history[1:], strict=False):
            if before < after:
                steps[first][second] += 1
    total = sum(sum(counts.values()) for counts in steps.values())
    usual = sum(counts.most_common(1)[0][1] for counts in steps.values())
    popular = Counter(name for history in histories.values() for _, name in history).most_common(1)[0][1]
    assert usual / total > 3 * popular / len(events)


def test_texts_tell_the_taste(tables: Any) -> None:
    """The items that a user likes agree in tone more often than the same items dealt to users at random."""
    items, events = tables
    tone = {item["item_id"]: item["text"].split()[1] for item in items}
    liked = [(event["user_id"], tone[event["item_id"]]) for event in events if (event["rating"] or 0) >= 4]
    dealt = [name for _, name in liked]
    random.Random(0).shuffle(dealt)
    by_chance = zip((user for user, _ in liked), dealt, strict=True)
    assert agreement(liked) > agreement(by_chance) + 0.1


def agreement(tones: Iterable[tuple[str, str]]) -> float:
    """Return the mean share of the most frequent tone, over users with at least 10 events."""
    by_user: dict[str, Counter[str]] = defaultdict(Counter)
    for user, name in tones:
        by_user[user][name] += 1
    shares = [counts.most_common(1)[0][1] / counts.total() for counts in by_user.values() if counts.total() >= 10]
    assert len(shares) > 10
    return sum(shares) / len(shares)
