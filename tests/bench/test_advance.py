"""``bench advance`` on a small world, through a real repository."""

from __future__ import annotations

from recsys_llm.bench import advance, backfill
from recsys_llm.commands import bench_advance
from tests.workspace import feast


def test_events_are_advanced_and_equal_to_reading_again(monkeypatch, tmp_path):
    for name, value in {"ITEMS": 50, "EVENTS_PER_USER": 12, "USERS": (4, 8, 16)}.items():
        for module in (backfill, advance, bench_advance):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(advance, "BATCH", 10)
    monkeypatch.setattr(bench_advance, "run_feast", feast)  # two processes of seconds each
    found = bench_advance.run_advance(tmp_path, runs=3)
    assert [result["name"] for result in found["results"]] == ["stream_1", "stream_10", "model_10", "again_10"]
    assert all(result["events_per_s"] > 0 for result in found["results"])
    assert found["settings"]["text_dim"] == 384
    difference = found["targets"][0]
    assert 0 < difference["value"] <= 1e-5 and difference["met"]
