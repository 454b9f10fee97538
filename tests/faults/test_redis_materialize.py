"""Materialising into a Redis that is full, was emptied, or evicts: never a success that isn't one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import redis
import yaml

from recsys_llm import schema
from recsys_llm.commands.feast_cli import FeastCommandError, run_feast
from recsys_llm.commands.repository import init_repository
from recsys_llm.errors import EmptiedStoreError, EvictingStoreError
from recsys_llm.retrieval import FeatureClient, open_store
from recsys_llm.timestamps import now
from tests.services import redis_server
from tests.workspace import CHEAP_VIEWS, apply, feast, materialize, offline, online, use_redis

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def server():
    with redis_server() as server:
        yield server


@pytest.fixture(scope="module")
def applied(tmp_path_factory, simulated_data, server) -> Path:
    target = init_repository(tmp_path_factory.mktemp("faults") / "feature_repo", data=simulated_data)
    use_redis(target, server.url, timeout_ms=2_000)
    apply(target)
    return target


@pytest.fixture
def repository(applied, server) -> Path:
    """The repository over the server, with nothing computed and nothing stored."""
    shutil.rmtree(applied / "data" / "features", ignore_errors=True)
    (applied / "data" / "ledger.db").unlink(missing_ok=True)
    use_redis(applied, server.url, timeout_ms=2_000)
    with redis.Redis.from_url(server.url) as admin:
        admin.flushall()
        admin.config_set("maxmemory-policy", "noeviction")
    return applied


def newest(repository: Path, view: str) -> dict[str, int]:
    """Return n_events of the newest stored row of each key."""
    rows = offline(repository, view)
    return dict(rows.groupby(rows.columns[0]).tail(1)[[rows.columns[0], schema.N_EVENTS]].values.tolist())


def read(repository: Path, view: str, keys: list[str]) -> dict[str, int]:
    return dict(zip(keys, online(repository, view, keys)[schema.N_EVENTS], strict=True))


def test_full_redis(repository, server):
    times = offline_times(repository)
    materialize(repository, schema.USER_STATS, end=times[len(times) // 3])
    before = newest(repository, schema.USER_STATS)
    arguments = ("materialize", "1960-01-01T00:00:00", now().strftime("%Y-%m-%dT%H:%M:%S"), "-v", schema.USER_STATS)
    with redis.Redis.from_url(server.url) as admin:
        admin.config_set("maxmemory", admin.info("memory")["used_memory"])
        with pytest.raises(FeastCommandError, match="OOM command not allowed when used memory"):
            run_feast(repository, *arguments)
        assert intervals(repository)[-1][1] == times[len(times) // 3]
        after = read(repository, schema.USER_STATS, list(before))
        assert all(after[key] is not None and after[key] >= value for key, value in before.items())
        admin.config_set("maxmemory", 0)
    feast(repository, *arguments)
    expected = newest(repository, schema.USER_STATS)
    assert read(repository, schema.USER_STATS, list(expected)) == expected
    assert len(expected) >= len(before)


def intervals(repository: Path) -> list:
    return list(open_store(repository).get_feature_view(schema.USER_STATS).materialization_intervals)


def offline_times(repository: Path) -> list:
    """Return the times of all events, sorted."""
    source = yaml.safe_load((repository / "recsys_llm.yaml").read_text())["sources"]["interactions"]["parquet"]
    return sorted(pq.read_table(source).column("event_timestamp").to_pylist())


def test_emptied_redis_is_noticed_and_filled_from_the_parts(repository, server, capsys):
    materialize(repository, *CHEAP_VIEWS, end=now())
    expected = {view: newest(repository, view) for view in CHEAP_VIEWS}
    user, items = next(iter(expected[schema.USER_STATS])), list(expected[schema.ITEM_STATS])
    for empty in ("flushall", "flushdb"):
        with redis.Redis.from_url(server.url) as admin:
            getattr(admin, empty)()
        with FeatureClient(repository) as client, pytest.raises(EmptiedStoreError, match="item_stats"):
            client.lookup(user, items[:3], service="ranker_baseline_v1")
        capsys.readouterr()
        materialize(repository, *CHEAP_VIEWS, end=now())
        assert "computed" not in capsys.readouterr().out
        assert {view: read(repository, view, list(keys)) for view, keys in expected.items()} == expected
        with FeatureClient(repository) as client:
            assert len(client.lookup(user, items[:3], service="ranker_baseline_v1")) == 3


def test_a_run_does_not_publish_again_what_the_same_redis_holds(repository, server):
    materialize(repository, schema.USER_STATS, end=now())
    with redis.Redis.from_url(server.url) as admin:
        writes = admin.info("commandstats")["cmdstat_hset"]["calls"]
        materialize(repository, schema.USER_STATS, end=now())
        assert admin.info("commandstats")["cmdstat_hset"]["calls"] == writes


def test_evicting_redis_is_refused(repository, server):
    before = intervals(repository)
    with redis.Redis.from_url(server.url) as admin:
        admin.config_set("maxmemory-policy", "volatile-ttl")
    with pytest.raises(EvictingStoreError, match="found volatile-ttl"):
        materialize(repository, schema.USER_STATS, end=now())
    assert intervals(repository) == before
    use_redis(repository, server.url, timeout_ms=2_000, allow_eviction=True)
    materialize(repository, schema.USER_STATS, end=now())
