"""``bench scaling``: repositories are compared row for row before anything is said."""

from __future__ import annotations

import json

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from recsys_llm import schema
from recsys_llm.bench import scaling
from recsys_llm.bench.cost_model import CostModel
from recsys_llm.cli import app
from recsys_llm.commands import bench_scaling
from recsys_llm.errors import ExecutorError
from tests.bench.scaling_parts import write_part

VIEW = schema.ITEM_TEXT_EMBEDDING


def test_other_rows_are_refused(tmp_path):
    for name in ("local", "ray"):
        write_part(tmp_path / name, VIEW, ["a", "b", "c"])
    assert scaling.check_equal(tmp_path / "local", tmp_path / "ray", VIEW) == 3
    file = scaling.parts_of(tmp_path / "ray", VIEW)[0]
    table = pq.read_table(file)
    pq.write_table(table.slice(0, 2), file)
    with pytest.raises(ExecutorError, match=f"3 rows of {VIEW} became 2"):
        scaling.check_equal(tmp_path / "local", tmp_path / "ray", VIEW)
    ids = pc.replace_substring(table.column(schema.ITEM_ID), "b", "x")
    pq.write_table(table.set_column(0, schema.ITEM_ID, ids), file)
    with pytest.raises(ExecutorError, match="other rows on Ray than without"):
        scaling.check_equal(tmp_path / "local", tmp_path / "ray", VIEW)
    write_part(tmp_path / "other", VIEW, ["a", "b", "c"], shift=0.5)
    with pytest.raises(ExecutorError, match="other rows on Ray than without"):
        scaling.check_equal(tmp_path / "local", tmp_path / "other", VIEW)


def test_the_cost_model_adds_gpus_until_the_driver_is_the_limit():
    one, two = (CostModel(1_000, 5_000, hours=hours).of(10**9) for hours in (300, 24))
    assert (one.gpus, one.limited_by) == (1, "gpus") and one.hours == pytest.approx(277.8, abs=0.1)
    assert (two.gpus, two.limited_by) == (5, "driver") and two.hours == pytest.approx(55.6, abs=0.1)
    assert one.gpu_hours == two.gpu_hours == pytest.approx(10**9 / 1_000 / 3600)
    half = CostModel(1_000, 5_000, dimension=192).of(10**9)
    assert (one.offline_gib - half.offline_gib) * 2**30 == pytest.approx(10**9 * 4 * 192)


def test_the_command(tmp_path, monkeypatch):
    """Without Ray here, which tests/endtoend/test_ray.py runs."""
    monkeypatch.setattr(bench_scaling, "WORKERS", {"local": 0})
    file = tmp_path / "scaling.json"
    arguments = ["bench", "scaling", "--items", "80", "--chunk-rows", "16", "--json", str(file)]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    local, small, large = json.loads(file.read_text())["results"]
    assert local["rows"] == 80 and local["rows_per_s"] > 0 and local["steady_rows_per_s"] > 0
    assert (small["items"], large["items"]) == (10**7, 10**9)
    assert "1,000,000,000 items" in done.output
