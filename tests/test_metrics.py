"""Metrics of lookups and of materialisations, as Prometheus reads them."""

from __future__ import annotations

import uuid
from datetime import timedelta
from types import SimpleNamespace
from urllib.request import urlopen

import numpy as np
import pytest
import yaml
from prometheus_client import REGISTRY, CollectorRegistry, start_http_server
from prometheus_client.parser import text_string_to_metric_families

from recsys_llm.commands.metrics_cli import materialized_until
from recsys_llm.errors import StoreError
from recsys_llm.metrics import FLUSH, STATUSES, LagCollector, LookupMetrics, write_run
from recsys_llm.retrieval import FeatureClient, Status, open_store
from recsys_llm.schema import ITEM_STATS
from recsys_llm.timestamps import now
from tests.retrieval.feast_repository import PLAIN, Repository
from tests.retrieval.online_rows import NOW, fill_online
from tests.services import redis_server
from tests.workspace import make_repository, materialize


def value(name, **labels):
    return REGISTRY.get_sample_value(name, labels) or 0.0


def samples(text):
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_statuses_have_the_names_of_the_enum():
    assert [status.name.lower() for status in sorted(Status)] == list(STATUSES)


def test_statuses_are_counted_after_some_lookups_and_at_a_scrape():
    view = f"v{uuid.uuid4().hex[:8]}"
    metrics = LookupMetrics()
    users = SimpleNamespace(status={})
    items = SimpleNamespace(status={view: np.array([2, 2, 1, 0], np.uint8)})
    batch = SimpleNamespace(store_error=None, user=users, item=items)
    for _ in range(FLUSH + 1):
        metrics.answered(0.001, [batch])
    list(REGISTRY.collect())
    found = {status: value("recsys_llm_lookup_rows_total", view=view, status=status) for status in STATUSES}
    assert found == {"present": 2 * (FLUSH + 1), "stale": FLUSH + 1, "missing": FLUSH + 1} | {
        "fallback": 0,
        "unavailable": 0,
    }


@pytest.mark.faults
def test_lookups_over_a_store_that_dies_are_told_apart(tmp_path):
    with redis_server() as server:
        online = {"type": "recsys_llm.stores.RedisOnlineStore", "connection_string": f"127.0.0.1:{server.port}"}
        repository = Repository(tmp_path, online={**online, "timeout_ms": 500, "breaker_failures": 1})
        fill_online(repository)
        client = FeatureClient(store=repository.store, now=lambda: NOW)
        before = {s: value("recsys_llm_lookup_seconds_count", status=s) for s in ("ok", "defaults", "error")}
        client.lookup("u1", ["i1", "i2"], service=PLAIN)
    client.lookup("u1", ["i1"], service=PLAIN, on_store_error="defaults")
    assert value("recsys_llm_breaker_open") == 1
    errors = value("recsys_llm_store_errors_total", type="ConnectionError")
    with pytest.raises(StoreError):
        client.lookup("u1", ["i1"], service=PLAIN)
    after = {s: value("recsys_llm_lookup_seconds_count", status=s) for s in before}
    assert {s: after[s] - before[s] for s in before} == {"ok": 1, "defaults": 1, "error": 1}
    assert errors > 0


def test_the_file_of_a_view_goes_on_counting(tmp_path):
    counts = {"recsys_llm_rows_written": 3, "recsys_llm_materialize_seconds": 0.5}
    later = now()
    for until in (later, later - timedelta(days=900)):  # a backfill doesn't move the end back
        file = write_run(tmp_path / "new", "v", "p", counts, until)
    write_run(tmp_path / "new", "v", "p", {"recsys_llm_materialize_failures": 1})
    found = samples(file.read_text())
    assert found["recsys_llm_rows_written_total", "p", "v"] == 6
    assert found["recsys_llm_materialize_seconds_total", "p", "v"] == 1.0
    assert found["recsys_llm_materialize_failures_total", "p", "v"] == 1
    assert found["recsys_llm_materialized_until_timestamp_seconds", "p", "v"] == pytest.approx(later.timestamp())
    assert [each.name for each in (tmp_path / "new").glob("recsys_llm_*")] == [
        file.name
    ]  # nothing half-written beside it


def test_a_materialisation_leaves_a_file_and_the_exporter_knows_its_lag(tmp_path, simulated_data):
    repository = make_repository(tmp_path / "feature_repo", simulated_data)
    file = repository / "recsys_llm.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"metrics": {"textfile": "prom"}}))
    end = now()
    for _ in range(2):
        materialize(repository, ITEM_STATS, end=end)
    found = samples((repository / "prom" / f"recsys_llm_{ITEM_STATS}.prom").read_text())
    rows = {
        name: found[f"recsys_llm_rows_{name}_total", "item_statistics", ITEM_STATS] for name in ("written", "skipped")
    }
    assert rows["written"] == rows["skipped"] > 0

    registry = CollectorRegistry()
    store = open_store(repository)
    registry.register(LagCollector(lambda: materialized_until(store)))
    server, _ = start_http_server(0, addr="127.0.0.1", registry=registry)
    with urlopen(f"http://127.0.0.1:{server.server_port}/metrics") as answer:
        lags = samples(answer.read().decode())
    server.shutdown()
    server.server_close()
    lag = lags["recsys_llm_view_lag_seconds", ITEM_STATS]
    assert 0 <= lag <= now().timestamp() - end.timestamp() + 1
    assert float("inf") in lags.values()  # views that were never materialised
