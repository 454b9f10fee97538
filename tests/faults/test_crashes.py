"""SIGKILL anywhere in a materialisation, and several at once: nothing lost, nothing twice, nothing stale."""

from __future__ import annotations

import random
import resource
import shutil
import signal
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
import redis
import yaml

from recsys_llm import schema
from recsys_llm.commands.feast_cli import run_feast
from recsys_llm.commands.repository import init_repository
from recsys_llm.config import load_config
from recsys_llm.producers import open_ledger
from recsys_llm.producers.user_statistics import UserStatistics
from recsys_llm.retrieval import open_store
from tests.faults.processes import join, spawn
from tests.services import redis_server
from tests.workspace import START, materialize, offline, online, use_redis

pytestmark = pytest.mark.faults

VIEW = schema.USER_STATS
CHUNK_ROWS = 128


@pytest.fixture(scope="module", params=["sqlite", "redis"])
def repository(request, tmp_path_factory, simulated_data):
    """An applied repository over either store."""
    target = init_repository(tmp_path_factory.mktemp("crash") / "feature_repo", data=simulated_data)
    if request.param == "sqlite":
        run_feast(target, "apply")
        shutil.copytree(target / "data", target / "applied")
        yield target
        return
    with redis_server() as server:
        use_redis(target, server.url)
        run_feast(target, "apply")
        shutil.copytree(target / "data", target / "applied")
        yield target


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(UserStatistics, "chunk_rows", CHUNK_ROWS)


def times(repository: Path) -> list:
    """Return the times of all events, sorted."""
    source = yaml.safe_load((repository / "recsys_llm.yaml").read_text())["sources"]["interactions"]["parquet"]
    return sorted(pq.read_table(source).column("event_timestamp").to_pylist())


def begin_again(repository: Path, until) -> None:
    """Start over, with the rows until a time materialised: older ones than the run to be killed will write."""
    settings = yaml.safe_load((repository / "feature_store.yaml").read_text())["online_store"]
    shutil.rmtree(repository / "data")
    shutil.copytree(repository / "applied", repository / "data")
    if settings["type"] != "sqlite":
        with redis.Redis(port=int(settings["connection_string"].split(":")[1])) as admin:
            admin.flushall()
    materialize(repository, VIEW, end=until)


def rows_in_parts(repository: Path) -> int:
    return sum(pq.read_metadata(file).num_rows for file in parts(repository))


def parts(repository: Path) -> list[Path]:
    return sorted((repository / "data" / "features" / VIEW).glob("part-*.parquet"))


def newest(rows: pd.DataFrame) -> dict[str, int]:
    return dict(rows.groupby(schema.USER_ID).tail(1)[[schema.USER_ID, schema.N_EVENTS]].values.tolist())


def read(repository: Path, keys: list[str]) -> dict[str, int]:
    return dict(zip(keys, online(repository, VIEW, keys)[schema.N_EVENTS], strict=True))


def kill_and_check(repository: Path, points: int, seed: int, capsys) -> None:
    moments = times(repository)
    middle, end = moments[len(moments) // 2], moments[-1] + pd.Timedelta(days=2).to_pytimedelta()

    def run() -> None:
        materialize(repository, VIEW, end=end)

    begin_again(repository, middle)
    status, calls = join(spawn(run, count=True))
    assert status == 0
    expected = offline(repository, VIEW)
    assert len(expected) == rows_in_parts(repository)
    assert len(parts(repository)) > 5
    assert read(repository, list(newest(expected))) == newest(expected)
    killed, chance = 0, random.Random(seed)
    for point in sorted(chance.sample(range(1, calls), points)):
        begin_again(repository, middle)
        status, _ = join(spawn(run, kill_at=point))
        killed += status == -signal.SIGKILL
        whole = rows_in_parts(repository)
        capsys.readouterr()
        run()
        computed = len(expected) - whole
        printed = capsys.readouterr().out
        assert (f"computed {computed:,} rows" in printed) if computed else "nothing new" in printed, (point, printed)
        found = offline(repository, VIEW)
        assert not found.duplicated([schema.USER_ID, schema.EVENT_TIMESTAMP]).any(), point
        assert found.map(repr).values.tolist() == expected.map(repr).values.tolist(), point
        assert read(repository, list(newest(expected))) == newest(expected), point
        ledger = open_ledger(load_config(repository))
        assert (ledger.count(VIEW), len(ledger.parts(VIEW))) == (len(expected), len(parts(repository))), point
        ledger.close()
        assert not list((repository / "data" / "features").glob(".*.tmp")), point
    assert killed >= points * 0.8  # a run may take another way, and end before its point


def test_killed_anywhere(repository, capsys):
    kill_and_check(repository, points=8, seed=20261124, capsys=capsys)


@pytest.mark.soak
def test_killed_anywhere_200_times(repository, capsys):
    kill_and_check(repository, points=200, seed=7, capsys=capsys)


@pytest.mark.parametrize("limit", [0, 4_096, 20_000])
def test_a_full_disk_loses_nothing(repository, limit):
    """RLIMIT_FSIZE stands for the disk: no file may grow beyond it, not the ledger's either."""
    moments = times(repository)
    begin_again(repository, moments[len(moments) // 2])
    before, serving = offline(repository, VIEW), read(repository, list(newest(offline(repository, VIEW))))

    def run_out_of_space() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        materialize(repository, VIEW, end=moments[-1])

    assert join(spawn(run_out_of_space))[0] == 1
    found = offline(repository, VIEW)
    kept = found.merge(before[[schema.USER_ID, schema.EVENT_TIMESTAMP]], on=[schema.USER_ID, schema.EVENT_TIMESTAMP])
    assert kept.map(repr).values.tolist() == before.map(repr).values.tolist()
    assert all(value >= serving[key] for key, value in read(repository, list(serving)).items())
    materialize(repository, VIEW, end=moments[-1])
    found = offline(repository, VIEW)
    assert len(found) > len(before)
    assert not found.duplicated([schema.USER_ID, schema.EVENT_TIMESTAMP]).any()
    assert read(repository, list(newest(found))) == newest(found)


def test_fifteen_concurrent_materialisations_of_one_view_keep_all_intervals(repository):
    moments = times(repository)
    ends = [moments[len(moments) * share // 16] for share in range(1, 16)]

    def several(number: int) -> None:
        for end in ends[number::3]:
            materialize(repository, VIEW, end=end)

    begin_again(repository, moments[0])
    before = open_store(repository).get_feature_view(VIEW).materialization_intervals
    children = [spawn(lambda number=number: several(number)) for number in range(3)]
    assert [join(child)[0] for child in children] == [0, 0, 0]
    after = open_store(repository).get_feature_view(VIEW).materialization_intervals
    assert sorted(set(after) - set(before)) == sorted((START, end) for end in ends)
    found = offline(repository, VIEW)
    assert not found.duplicated([schema.USER_ID, schema.EVENT_TIMESTAMP]).any()
    assert read(repository, list(newest(found))) == newest(found)


def test_an_interval_that_another_run_wrote_over_comes_back(repository):
    moments = times(repository)
    begin_again(repository, moments[0])
    store = open_store(repository)
    stale = store.get_feature_view(VIEW)
    materialize(repository, VIEW, end=moments[100])
    store.registry.apply_feature_view(stale, store.project)  # as Feast does when a run begins
    assert [end for _, end in open_store(repository).get_feature_view(VIEW).materialization_intervals] == [moments[0]]
    materialize(repository, VIEW, end=moments[200])
    ends = [end for _, end in open_store(repository).get_feature_view(VIEW).materialization_intervals]
    assert sorted(ends) == [moments[0], moments[100], moments[200]]


def test_sixteen_concurrent_applies_lose_nothing(repository):
    from feast import FeatureService

    def several(number: int) -> None:
        for place in range(4):
            store = open_store(repository)
            view = store.get_feature_view(VIEW)
            store.apply([FeatureService(name=f"service_{number}_{place}", features=[view])])

    children = [spawn(lambda number=number: several(number)) for number in range(4)]
    assert [join(child)[0] for child in children] == [0] * 4
    made = {service.name for service in open_store(repository).list_feature_services()}
    assert {f"service_{number}_{place}" for number in range(4) for place in range(4)} <= made
