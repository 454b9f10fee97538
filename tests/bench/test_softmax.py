"""``bench softmax`` on a small vocabulary."""

from __future__ import annotations

import pytest

from recsys_llm.bench import softmax


def test_both_sides_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(softmax, "ITEMS", 500)
    monkeypatch.setattr(softmax, "in_own_process", lambda work, name: (work(name), 1.0))
    found = softmax.bench_softmax(runs=2)
    assert [result["name"] for result in found["results"]] == ["full", "sampled"]
    assert all(result["targets_per_s"] > 0 and result["peak_mib"] == 1 for result in found["results"])
    assert [target["name"] for target in found["targets"]] == ["full_to_sampled_seconds", "full_to_sampled_memory"]
