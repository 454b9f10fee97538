"""``bench text-quality`` on a planted corpus: every contestant, every seed, and the shape of the report."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from recsys_llm.bench.report import write_report
from recsys_llm.bench.retrieval_report import mean_of, result_of, show_results
from recsys_llm.bench.text_quality import QualitySettings, bench_text_quality
from recsys_llm.bench.wordless_baselines import baseline_scores, cooccurrence_scorer, popularity_scorer
from recsys_llm.config import load_config
from recsys_llm.errors import DataError
from recsys_llm.text.evaluation import NextItemPairs, evaluate_vectors
from recsys_llm.text.events import Events
from tests.builders import config_for, write_interactions, write_items
from tests.text.planted import write_world

QUICK = QualitySettings(seeds=2, max_tokens=16, item_pairs=200, user_pairs=30, finetune_steps=5, pretrain_steps=3)


@pytest.fixture(scope="module")
def config(make_model, tmp_path_factory):
    model = make_model("bert", initializer_range=0.05)
    return load_config(write_world(tmp_path_factory.mktemp("planted"), model))


def test_every_contestant_and_seed_is_in_the_report(config, tmp_path):
    lines = []
    found = bench_text_quality(config, "tiny_v1", QUICK, device="cpu", echo=lines.append)
    write_report(tmp_path / "quality.json", found)
    content = json.loads((tmp_path / "quality.json").read_text())
    seeds = {result["name"]: result["seeds"] for result in content["results"]}
    assert seeds == {
        "frozen": 1,
        "fine-tuned": 2,
        "pre-trained": 2,
        "pre-trained, fine-tuned": 2,
        "popularity": 1,
        "co-occurrence": 1,
    }
    trained = [(training["name"], training["seed"]) for training in content["trainings"]]
    assert trained == [
        ("fine-tuned", 0),
        ("fine-tuned", 1),
        ("pre-trained", 0),
        ("pre-trained, fine-tuned", 0),
        ("pre-trained", 1),
        ("pre-trained, fine-tuned", 1),
    ]
    names = {"recall_at_20", "ndcg_at_10", "cold_recall_at_20", "cold_recall_among_cold_at_20"}
    for result in content["results"][1:4]:
        assert result["versus"] == "frozen"
        assert set(result["metrics"]) == names
        assert len(result["metrics"]["recall_at_20"]["difference"]["ci95"]) == 2
    losses = [epoch["loss"] for epoch in content["trainings"][0]["epochs"]]
    assert losses[0] is None
    assert all(np.isfinite(losses[1:]))
    assert content["trainings"][2]["held_out_losses"]
    show_results(content["results"], lines.append)
    assert any("fine-tuned, seed 1" in line for line in lines)
    assert any("to frozen" in line for line in lines)


def test_without_pre_training(config):
    none = bench_text_quality(config, "tiny_v1", replace(QUICK, seeds=1, pretrain_steps=0), device="cpu")
    assert [result["name"] for result in none["results"]] == ["frozen", "fine-tuned", "popularity", "co-occurrence"]


def test_data_that_cannot_be_split_is_refused(tmp_path, tiny_bert):
    write_items(tmp_path, [("a", None, "fox", "x")])
    write_interactions(tmp_path, [])
    config = config_for(tmp_path, f"text_encoders:\n  tiny_v1: {{model: {tiny_bert}, max_tokens: 24}}\n")
    with pytest.raises(DataError, match="expected events to split in time, found 0"):
        bench_text_quality(config, "tiny_v1", QUICK, device="cpu")


def events_of(rows):
    user, item, liked = (np.array(column) for column in zip(*rows, strict=True))
    return Events(user, np.arange(len(rows)), item, liked)


def test_baselines_against_counting():
    events = events_of(
        [(0, 0, True), (0, 1, True), (0, 1, True), (1, 0, True), (1, 2, True), (2, 2, True), (2, 3, False)]
    )
    assert popularity_scorer(events, 5)(np.array([3]))[0].tolist() == [2, 2, 2, 0, 0]
    found = cooccurrence_scorer(events, 5)(np.array([0, 4]))
    expected = [1.0, 1 / np.sqrt(2), 1 / 2, 0, 0]  # users of 0: {0, 1}, of 1: {0}, of 2: {1, 2}
    assert found[0] == pytest.approx(expected, abs=1e-5)
    assert found[1].argmax() in (0, 1, 2)
    pairs = NextItemPairs(*(np.array(column) for column in ([0], [1], [0], [9])), np.array([0, 0, 0, 0, 1], bool))
    assert baseline_scores(events, pairs)["co-occurrence"].recall.tolist() == [1.0]


def test_seeds_are_averaged_for_each_user():
    rng = np.random.default_rng(0)
    query = rng.integers(0, 9, 60)
    pairs = NextItemPairs(query, (query + 1) % 9, rng.integers(0, 7, 60), np.arange(60), np.zeros(9, np.bool_))
    runs = [evaluate_vectors(rng.normal(size=(9, 4)).astype(np.float32), pairs, k=2) for _ in range(3)]
    assert mean_of(runs).recall == pytest.approx(np.mean([run.recall for run in runs], axis=0))
    figures = result_of("some", runs, baseline=("first", runs[:1]))["metrics"]
    assert set(figures) == {"recall_at_2", "ndcg_at_10"}  # nothing is cold
    assert figures["recall_at_2"]["value"] == pytest.approx(np.mean(figures["recall_at_2"]["by_seed"]))
    difference = figures["recall_at_2"]["difference"]["value"]
    assert difference == pytest.approx(figures["recall_at_2"]["value"] - runs[0].mean("recall"))
