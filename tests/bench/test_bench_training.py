"""``bench training`` compares equal vectors, and refuses others."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from recsys_llm.bench import training as bench_training_module
from recsys_llm.bench.training import SIDES, bench_training
from recsys_llm.bench.training_world import COLUMNS, VIEWS
from recsys_llm.cli import app
from recsys_llm.errors import RetrievalError
from recsys_llm.retrieval.as_of import reads


@pytest.fixture(autouse=True)
def small_world(monkeypatch):
    """Few stored rows, and every side in this process."""
    small = {view: (entity, 40, 3) for view, (entity, _, _) in VIEWS.items()}
    monkeypatch.setattr("recsys_llm.bench.training_world.VIEWS", small)
    monkeypatch.setattr("recsys_llm.retrieval.history.reads", reads)  # put back after the test
    monkeypatch.setattr(bench_training_module, "in_own_process", lambda work, *arguments: (work(*arguments), 1.0))


def test_the_report_holds_every_side(tmp_path):
    arguments = ["bench", "training", "--rows", "300", "--runs", "1", "--json", str(tmp_path / "t.json")]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0 and "share_of_feasts_memory" in done.output
    content = json.loads((tmp_path / "t.json").read_text())
    medians = {result["name"]: result["median"] for result in content["results"]}
    assert set(medians) == {f"{side}_{unit}" for side in SIDES for unit in ("s", "peak_mib")} | {
        "gathered_vectors_per_s"
    }
    targets = {target["name"]: target["value"] for target in content["targets"]}
    assert targets["ratio_to_feast"] == pytest.approx(medians["feast_to_df_s"] / medians["ours_s"])
    assert content["settings"]["rows"] == 300


def test_other_vectors_are_refused(monkeypatch):
    def others(folder):
        work = SIDES["duckdb_asof"](folder)

        def shifted(frame):
            table = work(frame)
            place = table.column_names.index(COLUMNS[1])
            column = table.column(place)
            return table.set_column(place, COLUMNS[1], column.take(np.arange(len(column))[::-1]))

        return shifted

    monkeypatch.setattr(bench_training_module, "SIDES", {**SIDES, "reversed": others})
    with pytest.raises(RetrievalError, match="reversed has other vectors than ours"):
        bench_training(rows=200, runs=1)
