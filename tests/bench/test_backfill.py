"""``bench backfill`` on a small world: sizes, rates, and predictions that must be equal."""

from __future__ import annotations

import numpy as np
import pytest

from recsys_llm.bench import backfill
from recsys_llm.errors import ModelError


@pytest.fixture(autouse=True)
def small(monkeypatch):
    for name, value in (("ITEMS", 40), ("EVENTS_PER_USER", 8), ("USERS", (3, 6, 12)), ("_PREFIXES", 5), ("TOP_N", 5)):
        monkeypatch.setattr(backfill, name, value)


def test_every_size_is_in_the_report():
    found = backfill.bench_backfill(runs=3)
    assert [result["name"] for result in found["results"]] == ["24_events", "48_events", "96_events", "prefixes"]
    for result in found["results"]:
        assert result["rows_per_s"] * result["median"] == pytest.approx(
            5 if result["name"] == "prefixes" else int(result["name"].split("_")[0])
        )
    assert [target["name"] for target in found["targets"]] == ["seconds_per_event_growth", "ratio_to_prefixes"]


def test_other_predictions_are_an_error(monkeypatch):
    real = backfill._last

    def other(checkpoint, histories):
        found = real(checkpoint, histories)
        np.subtract(found.log_probs, 0.5, out=found.log_probs)
        return found

    monkeypatch.setattr(backfill, "_last", other)
    with pytest.raises(ModelError, match="a prefix alone gives other log-probabilities"):
        backfill.bench_backfill(runs=3)
