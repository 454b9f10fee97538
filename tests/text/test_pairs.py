"""What an encoder is fine-tuned and validated on: nothing later than the cut-off, the newest held back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from recsys_llm.config import load_config
from recsys_llm.sources import tables
from recsys_llm.text.categories import Categories, f1_scores
from recsys_llm.text.evaluation import NextItemPairs
from recsys_llm.text.finetuning_settings import FinetuningConfig
from recsys_llm.text.objectives import _rows_that_fit
from recsys_llm.text.pairs import item_texts
from recsys_llm.timestamps import to_micros
from tests.builders import config_for, hours, write_interactions, write_items
from tests.text.planted import CODES, UNTIL, pairs_of


def test_pairs_are_before_the_cut_off_and_validation_is_the_last(world):
    items, pairs = pairs_of(world)
    assert pairs.validation_from < UNTIL
    assert pairs.validation.time.min() >= to_micros(pairs.validation_from)
    assert pairs.validation.time.max() < to_micros(UNTIL)
    assert 0.08 < len(pairs.validation) / (len(pairs.validation) + (pairs.query_item >= 0).sum()) < 0.12
    assert set(pairs.target.tolist()) <= {row for row, item in enumerate(items.ids) if int(item.split("-")[1]) < 8}
    by_item = pairs.query_item >= 0
    assert np.array_equal(pairs.query_text[by_item], pairs.item_text[pairs.query_item[by_item]])


def test_a_users_text_holds_what_they_liked_before_and_no_more(world):
    items, pairs = pairs_of(world, item_pairs=1, user_pairs=200, recent_items=3)
    table = tables.interactions(load_config(world))
    liked = {}
    for batch in table:
        for row in batch.to_pylist():
            liked.setdefault(row["user_id"], []).append((row["event_timestamp"], row["item_id"]))
    users = sorted(liked)
    titles = dict(zip(items.ids, items.titles, strict=True))
    possible = {}
    for place, user in enumerate(users):
        history = sorted(liked[user])
        for at in range(1, len(history)):
            newest = [titles[item] for _, item in history[max(0, at - 3) : at]][::-1]
            possible.setdefault((place, history[at][1]), set()).add(". ".join(dict.fromkeys(newest)))
    rows = np.flatnonzero(pairs.query_item < 0)
    assert len(rows) == 200
    for row in rows:
        key = (int(pairs.user[row]), items.ids[pairs.target[row]])
        assert pairs.texts[pairs.query_text[row]] in possible[key]


def test_an_items_newest_text_from_before_is_read(tmp_path):
    write_items(
        tmp_path,
        [
            ("b", hours(1), "old", "x"),
            ("b", hours(5), "new", "y"),
            ("b", UNTIL, "spoiler", "z"),
            ("c", UNTIL, "spoiler", "z"),
            ("a", None, "always", ""),
        ],
    )
    write_interactions(tmp_path, [])
    config = config_for(tmp_path, "text_encoders:\n  tiny_v1: {model: none, template: '{title}!'}\n")
    found = item_texts(tables.items(config), config.text_encoders["tiny_v1"], until=UNTIL, source="items")
    assert (found.ids, found.texts, found.titles) == (["a", "b"], ["always!", "new!"], ["always", "new"])
    assert (found.categories, found.times.tolist()[1]) == (["", "y"], to_micros(hours(5)))


def test_f1_of_nothing_is_zero():
    nothing = np.zeros((2, 2), np.bool_)
    assert f1_scores(nothing, nothing) == {"micro_f1": 0.0, "macro_f1": 0.0}


def test_the_newest_items_are_held_back_for_validation(world):
    items, _ = pairs_of(world)
    aged = replace(items, times=np.arange(len(items)), categories=[f"{code}, all" for code in items.categories])
    task = Categories(aged, FinetuningConfig(objective="category", validation_share=0.25))
    assert task.names == sorted({"all", *(code for code in CODES if items.categories.index(code) < 68)})
    assert [task.texts[place] for place in task._validation_text] == items.texts[72:]


def test_validation_takes_as_many_pairs_as_fit():
    rng = np.random.default_rng(0)
    query = rng.integers(0, 40, 200)
    pairs = NextItemPairs(query, (query + 1) % 40, np.zeros(200), np.arange(200), np.zeros(40, np.bool_))
    assert _rows_that_fit(pairs, 40, rng).tolist() == list(range(200))
    rows = _rows_that_fit(pairs, 21, rng)
    items = np.union1d(pairs.query[rows], pairs.target[rows])
    assert 19 <= len(items) <= 21
    assert len(_rows_that_fit(pairs, 1, rng)) == 1
