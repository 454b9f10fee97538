"""Peers: what they are given, what comes back, and that they learn."""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pyarrow.parquet as pq
import pytest

from recsys_llm.bench.next_items import NextItemsSettings, evaluate_world
from recsys_llm.bench.next_items_baselines import fit_popularity
from recsys_llm.bench.next_items_scoring import validation_ndcg
from recsys_llm.bench.next_items_world import World
from recsys_llm.bench.peers import exchange, gru4rec, rectools_peers
from recsys_llm.bench.peers.exchange import ENVIRONMENT, flat_histories, peers_python, run_sasrec
from recsys_llm.errors import ModelError
from recsys_llm.seqgan.sequences import Sequences
from recsys_llm.timestamps import to_micros
from tests.bench.next_items_data import CUT, tiny_world
from tests.seqgan.seqgan_data import SMALL

FAKE = """
import json, sys, shutil
from pathlib import Path
import numpy as np, pyarrow as pa, pyarrow.parquet as pq
folder = Path(sys.argv[1])
shutil.copytree(folder, {kept!r}, dirs_exist_ok=True)
test = pq.read_table(folder / "test.parquet")
query, item = test["query"].to_numpy(), test["item"].to_numpy()
last = np.append(query[1:] != query[:-1], True)
rows = {{"query": query[last], "item": item[last], "rank": np.ones(last.sum(), int), "seed": np.zeros(last.sum(), int)}}
pq.write_table(pa.table(rows), folder / "answers.parquet")
(folder / "answers.json").write_text(json.dumps([{{"seconds": 1.5, "validation": 0.1, "chosen_settings": {{}}}}]))
print("tuned")
"""


@pytest.fixture(scope="module")
def world() -> World:
    return tiny_world()


def test_what_a_peer_is_given_and_gives_back(world, tmp_path, monkeypatch):
    script, kept = tmp_path / "fake.py", tmp_path / "kept"
    script.write_text(FAKE.format(kept=str(kept)))
    monkeypatch.setattr(exchange, "_SCRIPT", script)
    lines: list[str] = []
    (answer,) = run_sasrec(
        world, exchange.Path(sys.executable), share=0.2, largest=50, seeds=1, budget=9.0, echo=lines.append
    )
    assert lines == ["tuned"] and answer.seconds == 1.5 and answer.validation == 0.1
    offsets, items = world.sequences.group_offsets, exchange.in_arbitrary_order(world.sequences).items
    for row, (group, read) in enumerate(zip(world.tasks.groups, world.tasks.read, strict=True)):
        assert answer.lists[row, 0] == (items[offsets[group] - 1] if read else -1)
    assert (answer.lists[:, 1:] == -1).all()
    fit, everything = (pq.read_table(kept / f"{name}.parquet") for name in ("fit", "all"))
    known = np.repeat(world.sequences.timestamps, world.sequences.group_sizes()) < to_micros(CUT)
    assert everything.num_rows == known.sum() > fit.num_rows
    assert everything["time"].to_pylist() == list(range(everything.num_rows))


def test_histories_end_before_the_group(world):
    flat = flat_histories(world.sequences, world.tasks)
    for row in (0, len(world.tasks) // 2, len(world.tasks) - 1):
        group, read = world.tasks.groups[row], world.tasks.read[row]
        offsets = world.sequences.group_offsets
        own = world.sequences.items[offsets[group - read] : offsets[group]]
        assert flat["item"][flat["query"] == row].tolist() == own[own >= 0].tolist()


def test_the_order_in_a_group_is_arbitrary_and_the_same_without_the_future():
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 9, 60)
    items = np.concatenate([np.sort(rng.choice(500, size, replace=False)) for size in sizes])
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    sequences = Sequences(items, offsets, np.array([0, 30, 60]), np.tile(np.arange(30), 2))
    found = exchange.in_arbitrary_order(sequences)
    groups = [found.items[first:last] for first, last in pairwise(offsets)]
    assert all(
        set(group) == set(items[first:last])
        for group, first, last in zip(groups, offsets[:-1], offsets[1:], strict=True)
    )
    falls = np.concatenate([np.diff(group) < 0 for group in groups])
    assert 0.4 < falls.mean() < 0.6
    early = exchange.in_arbitrary_order(sequences.before(20))
    assert early.items.tolist() == found.before(20).items.tolist()


def test_a_peer_that_fails_says_why(world, tmp_path, monkeypatch):
    script = tmp_path / "broken.py"
    script.write_text("raise SystemExit('no such module')")
    monkeypatch.setattr(exchange, "_SCRIPT", script)
    with pytest.raises(ModelError, match="no such module"):
        run_sasrec(world, exchange.Path(sys.executable), share=0.2, largest=50, seeds=1, budget=9.0)


def test_the_environment_is_looked_for_in_the_working_directory(tmp_path):
    assert peers_python(tmp_path) is None
    python = tmp_path / ENVIRONMENT / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    assert peers_python(tmp_path) == python


def test_both_sides_compute_the_same_ndcg():
    import pandas as pd

    found = pd.DataFrame({"query": [0, 0, 1], "item": [5, 7, 3], "rank": [1, 2, 10]})
    wanted = pd.DataFrame({"query": [0, 0, 1, 2], "item": [7, 8, 3, 1]})
    first = (1 / np.log2(3)) / (1 + 1 / np.log2(3))
    assert rectools_peers.ndcg(found, wanted) == pytest.approx((first + 1 / np.log2(11) + 0.0) / 3)


def test_gru4rec_learns_the_chain(world):
    config = gru4rec.GRU4RecConfig(dim=16, negatives=32, epochs=25, dropout=0.0, learning_rate=0.02, patience=25)
    tuned = gru4rec.tune(world, 0.2, 100, 60.0, (replace(config, epochs=1), config))
    assert tuned.config.epochs > 1 and tuned.config.dim == 16
    _, tasks = world.validation(0.2, 100)
    assert tuned.validation > 2 * validation_ndcg(fit_popularity(world).scorer, world, tasks)
    one, again, other = (gru4rec.fit(world, tuned.config, seed)[0](world.tasks) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert not np.allclose(one, other)


def test_training_windows_overlap_by_one_item(world):
    windows = gru4rec.training_windows(world.before(), len(world.item_ids)).numpy()
    padding = len(world.item_ids)
    pairs = sum(int((row[1:] != padding).sum()) for row in windows)
    sizes = [
        len(np.flatnonzero(flat == user))
        for flat in [exchange.flat_events(world.before())["user"]]
        for user in set(flat)
    ]
    assert pairs == sum(sizes) - len(sizes)  # every item but a user's first is a target once


@pytest.mark.skipif(peers_python() is None, reason="no .venv-peers here: run `make peers`")
def test_rectools_takes_part(world, monkeypatch):
    monkeypatch.setattr(gru4rec, "GRID", (gru4rec.GRU4RecConfig(dim=8, negatives=16, epochs=1),))
    short = replace(SMALL, mle_epochs=1, adversarial_epochs=0)
    content = evaluate_world(world, NextItemsSettings(seeds=1, training=short, peer_budget=0.1), device="cpu")
    found = {result["name"]: result for result in content["results"]}
    assert "SASRec" in found and "adversarial" not in found and not content["settings"]["not_run"]
    assert found["SASRec"]["metrics"]["ndcg_at_10"]["value"] > 0
    assert found["SASRec"]["chosen_settings"]["epochs"] == rectools_peers.EPOCHS_PER_CHECK
    assert not found["SASRec"]["metrics"]["cold_hr_at_10"]["value"]  # it has never met the others
