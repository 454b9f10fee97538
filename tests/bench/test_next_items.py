"""The contest of next items: who may know what, baselines against counting, and the shape of the report."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise

import numpy as np
import pytest
from scipy import sparse

from recsys_llm.bench import next_items
from recsys_llm.bench.next_items import NextItemsSettings, evaluate_world
from recsys_llm.bench.next_items_baselines import (
    EASE_BYTES,
    ease_weights,
    fit_ease,
    fit_knn,
    fit_markov,
    fit_popularity,
    history_weights,
)
from recsys_llm.bench.next_items_generators import train_generators
from recsys_llm.bench.next_items_report import show_report
from recsys_llm.bench.next_items_scoring import measure, measure_lists, ranked_lists
from recsys_llm.bench.next_items_world import Tasks, World
from recsys_llm.bench.peers import gru4rec
from recsys_llm.bench.report import write_report
from recsys_llm.errors import ConfigError, DataError
from recsys_llm.timestamps import to_micros
from tests.bench.next_items_data import CUT, LATE, NEW, tiny_events, tiny_world
from tests.seqgan.seqgan_data import SMALL, START, table

QUICK = replace(SMALL, mle_epochs=2)
GRID = (gru4rec.GRU4RecConfig(dim=8, negatives=16, epochs=2),)


@pytest.fixture(scope="module")
def world() -> World:
    return tiny_world()


def groups_of(world: World, *, until: int) -> list[list[list[int]]]:
    """Each user's groups of items before a time."""
    offsets, items = world.sequences.group_offsets, world.sequences.items
    return [
        [
            items[offsets[group] : offsets[group + 1]].tolist()
            for group in range(first, last)
            if world.sequences.timestamps[group] < until
        ]
        for first, last in pairwise(world.sequences.user_offsets)
    ]


def test_the_catalogue_and_the_tasks(world):
    cut = to_micros(CUT)
    assert world.item_ids[-1] == NEW and NEW not in world.vocabulary.item_ids
    assert world.cold[-1] and world.cold[world.item_ids.index("i20")] and not world.cold[0]
    assert (world.sequences.timestamps[world.tasks.groups] >= cut).all()
    assert len(world.tasks) == (world.sequences.timestamps >= cut).sum()
    first = np.flatnonzero(world.tasks.read == 0)
    assert len(first) == 1  # the user whose first event comes after the cut-off
    last = tiny_world(split="leave-one-out")
    assert len(last.tasks) == len(np.unique(last.tasks.users)) == 13
    assert np.isin(last.tasks.groups, last.sequences.user_offsets[1:] - 1).all()


def test_an_item_is_no_candidate_before_it_is_known(world):
    lists = ranked_lists(
        lambda tasks: np.tile(np.arange(len(world.item_ids), dtype=np.float32), (len(tasks), 1)),
        world.sequences,
        world.tasks,
        len(world.item_ids),
        filter_seen=False,
        excluded=world.unavailable,
    )
    known = world.sequences.timestamps[world.tasks.groups] > to_micros(LATE)
    assert known.any() and not known.all()
    new = len(world.item_ids) - 1
    assert (lists[known, 0] == new).all() and not (lists[~known] == new).any()


def test_an_item_described_after_it_was_bought_is_left_out():
    rows = [tuple(row.values()) for row in tiny_events().to_pylist()]
    early = tiny_world(table([*rows, ("u00", NEW, LATE - timedelta(hours=1))]))
    assert NEW not in early.item_ids and (early.sequences.items == -1).any()


def test_popularity_and_ties_are_in_catalogue_order(world):
    lists = ranked_lists(
        fit_popularity(world).scorer, world.sequences, world.tasks, len(world.item_ids), filter_seen=False
    )
    expected = np.argsort(-world.counts, kind="stable")
    assert (lists == expected[: lists.shape[1]]).all()


def test_markov_against_counting(world):
    fitted = fit_markov(world, 0.2, 100)
    items, decay = len(world.item_ids), fitted.settings["decay"]
    follows, seen = np.zeros((items, items)), np.zeros(items)
    for groups in groups_of(world, until=to_micros(CUT)):
        for group in groups:
            seen[group] += 1
        for before, after in pairwise(groups):
            follows[np.ix_(before, after)] += 1
    share = follows / np.maximum(seen, 1)[:, None]
    found = fitted.scorer(world.tasks)
    for row, (user, read) in enumerate(zip(world.tasks.users, world.tasks.read, strict=True)):
        groups = groups_of(world, until=2**62)[user][:read]
        expected = np.zeros(items)
        for age, group in enumerate(reversed(groups)):
            if decay**age > 1e-6:
                expected += decay**age * share[group].sum(axis=0)
        np.testing.assert_allclose(found[row], expected, atol=1e-5)


def test_knn_against_counting(world):
    fitted = fit_knn(world, 0.2, 100)
    items, settings = len(world.item_ids), fitted.settings
    own = [sorted({item for group in groups for item in group}) for groups in groups_of(world, until=to_micros(CUT))]
    had = np.zeros((len(own), items))
    for user, listed in enumerate(own):
        had[user, listed] = 1 / np.sqrt(np.log1p(max(1, len(listed))))
    norm = np.sqrt((had**2).sum(axis=0) + settings["shrinkage"])
    similar = had.T @ had / norm[:, None] / norm[None, :]
    np.fill_diagonal(similar, settings["own"])
    history = history_weights(world.sequences, world.tasks, items, settings["decay"]).toarray()
    np.testing.assert_allclose(fitted.scorer(world.tasks), history @ similar, atol=1e-5)


def test_ease_is_the_closed_form():
    had = (np.random.default_rng(0).random((40, 7)) < 0.4).astype(np.float64)
    found = ease_weights(sparse.csr_array(had.astype(np.float32)), 5.0)
    inverse = np.linalg.inv(had.T @ had + 5.0 * np.eye(7))
    expected = np.eye(7) - inverse / np.diag(inverse)
    np.testing.assert_allclose(found, expected, atol=1e-5)

    # The constrained minimum: no other weight with a zero diagonal has a smaller loss.
    def loss(weights):
        return np.square(had - had @ weights).sum() + 5.0 * np.square(weights).sum()

    rng = np.random.default_rng(1)
    for _ in range(20):
        step = 0.01 * rng.normal(size=(7, 7))
        np.fill_diagonal(step, 0.0)
        assert loss(expected + step) > loss(expected)


def test_ease_refuses_a_catalogue_that_does_not_fit(world, monkeypatch):
    assert EASE_BYTES >= 1 << 30
    monkeypatch.setattr("recsys_llm.bench.next_items_baselines.EASE_BYTES", 1000)
    with pytest.raises(DataError, match="leave EASE out with --skip EASE"):
        fit_ease(world, 0.2, 100)


def contestants(world: World):
    for fit in (fit_popularity, lambda w: fit_markov(w, 0.2, 50), lambda w: fit_knn(w, 0.2, 50)):
        yield fit(world).scorer
    yield fit_ease(world, 0.2, 50).scorer
    yield gru4rec.fit(world, GRID[0], seed=0)[0]
    for trained in train_generators(world, replace(QUICK, generator_steps=1), 0, device="cpu"):
        yield trained.scorer


def test_no_prediction_changes_with_the_future(world):
    """What comes at or after a group's time, anybody's, may be deleted or shuffled: its prediction stays."""
    middle = CUT + timedelta(days=3)
    rows = [tuple(row.values()) for row in tiny_events().to_pylist()]
    past, future = [row for row in rows if row[2] < middle], [row for row in rows if row[2] >= middle]
    items = np.random.default_rng(0).permutation([row[1] for row in future])
    shuffled = [(user, str(item), time) for (user, _, time), item in zip(future, items, strict=True)]
    others = [tiny_world(table(past)), tiny_world(table([*past, *shuffled]))]
    tasks = world.tasks.take(world.sequences.timestamps[world.tasks.groups] < to_micros(middle))
    expected = [scorer(tasks) for scorer in contestants(world)]
    assert len(expected) == 10
    for other in others:
        places = other.histories.user_ids.to_pylist()
        users = np.array([places.index(world.histories.user_ids[user].as_py()) for user in tasks.users])
        same = Tasks(other.sequences.user_offsets[users] + tasks.read, users, tasks.read)
        for before, scorer in zip(expected, contestants(other), strict=True):
            after = scorer(same)
            place = [other.item_ids.index(item) for item in world.vocabulary.item_ids]
            np.testing.assert_allclose(after[:, place], before[:, : len(place)], atol=1e-5)


def test_metrics_of_perfect_and_of_empty_lists(world):
    offsets, items = world.sequences.group_offsets, world.sequences.items
    perfect = np.full((len(world.tasks), 100), -1)
    for row, group in enumerate(world.tasks.groups):
        own = np.unique(items[offsets[group] : offsets[group + 1]])
        perfect[row, : len(own)] = own
    found = measure_lists(perfect, world)
    assert found.metrics["ndcg_at_10"].mean() == found.metrics["mrr"].mean() == 1.0
    cold = found.metrics["cold_hr_at_10"]
    assert np.nanmean(cold) == 1.0 and np.isfinite(cold).sum() == 4  # four users buy the new item
    empty = measure_lists(np.full((len(world.tasks), 100), -1), world)
    assert empty.metrics["hr_at_10"].sum() == empty.coverage == empty.popularity == 0.0
    assert np.isnan(empty.diversity)


def test_diversity_is_the_mean_cosine_distance_of_pairs(world):
    lists = np.full((len(world.tasks), 100), -1)
    lists[0, :3] = [0, 4, 7]
    unit = world.text[[0, 4, 7]] / np.linalg.norm(world.text[[0, 4, 7]], axis=1, keepdims=True)
    cosines = [unit[a] @ unit[b] for a, b in ((0, 1), (0, 2), (1, 2))]
    assert measure_lists(lists, world).diversity == pytest.approx(1 - np.mean(cosines), abs=1e-6)


def test_among_cold_candidates_only(world):
    found = measure(lambda tasks: np.zeros((len(tasks), len(world.item_ids)), np.float32), world)
    scored = found.metrics["cold_among_cold_mrr"]
    cold = np.flatnonzero(world.cold)
    place = cold.tolist().index(len(world.item_ids) - 1)  # equal scores: catalogue order
    assert scored[np.isfinite(scored)] == pytest.approx(1 / (1 + place))


def test_the_report_of_a_tiny_contest(world, tmp_path, monkeypatch):
    monkeypatch.setattr(gru4rec, "GRID", GRID)
    monkeypatch.setattr(next_items, "peers_python", lambda: None)
    lines: list[str] = []
    settings = NextItemsSettings(seeds=2, training=QUICK)
    content = evaluate_world(world, settings, device="cpu", echo=lines.append)
    write_report(tmp_path / "report.json", content)
    content = json.loads((tmp_path / "report.json").read_text())
    seeds = {result["name"]: result["seeds"] for result in content["results"]}
    once = {"popularity": 1, "Markov": 1, "item-kNN": 1, "EASE": 1}
    trained = ("MLE id-only", "MLE content", "adversarial", "equal-steps control", "chosen", "GRU4Rec")
    assert seeds == once | dict.fromkeys(trained, 2)
    for result in content["results"]:
        figure = result["metrics"]["ndcg_at_10"]
        assert figure["ci95"][0] <= figure["value"] <= figure["ci95"][1] and figure["users"] == 13
        assert figure["value"] == pytest.approx(np.mean(figure["by_seed"]))
        assert 0 < result["coverage"] <= 1 and result["mean_popularity"] > 0
        assert sum(part["groups"] for part in result["by_history"].values()) == len(world.tasks)
    targets = {target["name"]: target for target in content["targets"]}
    value = {result["name"]: result["metrics"]["ndcg_at_10"]["value"] for result in content["results"]}
    ratio = targets["chosen_to_popularity"]
    assert ratio["value"] == pytest.approx(value["chosen"] / value["popularity"])
    assert ratio["met"] == (ratio["value"] >= 2)
    assert targets["chosen_to_sasrec"]["value"] is None and not targets["chosen_to_sasrec"]["met"]
    helps = targets["adversarial_minus_control"]
    assert helps["met"] == (helps["ci95"][0] > 0) and helps["verdict"] in ("no gain", "adversarial helps")
    show_report(content, lines.append)
    assert any("SASRec" in line and "make peers" in line for line in lines)


def test_an_unknown_contestant_is_refused(world):
    with pytest.raises(ConfigError, match="EASE"):
        evaluate_world(world, NextItemsSettings(skip=("EASY",)))


def test_without_events_after_the_cut_there_is_nothing_to_predict():
    with pytest.raises(DataError, match="found none"):
        tiny_world(cut=START + timedelta(days=60))
