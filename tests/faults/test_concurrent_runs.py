"""Several materialisations of one view, and several applies, at once: no interval and no object is lost."""

from __future__ import annotations

import uuid

import pytest
import sqlalchemy as sa
import yaml

from recsys_llm import schema
from recsys_llm.commands.repository import init_repository
from recsys_llm.producers.user_statistics import UserStatistics
from recsys_llm.retrieval import open_store
from tests.faults.crashes import CHUNK_ROWS, VIEW, newest, read, times
from tests.faults.processes import join, spawn
from tests.services import redis_server
from tests.workspace import START, apply, materialize, offline, use_redis

pytestmark = pytest.mark.faults


@pytest.fixture
def no_connection_stays():
    """Close what Feast's SQL registry leaves open when a store is forgotten."""
    opened = []

    def remember(connection, record):
        opened.append(connection)

    sa.event.listen(sa.pool.Pool, "connect", remember)
    yield
    sa.event.remove(sa.pool.Pool, "connect", remember)
    for connection in opened:
        connection.close()


@pytest.fixture
def database(postgres_url, no_connection_stays):
    name = f"concurrent_{uuid.uuid4().hex[:8]}"
    admin = sa.create_engine(postgres_url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(sa.text(f"create database {name}"))
    yield sa.make_url(postgres_url).set(database=name).render_as_string(hide_password=False)
    with admin.connect() as connection:
        connection.execute(sa.text(f"drop database {name} with (force)"))
    admin.dispose()


@pytest.fixture(params=["sqlite", "Redis and Postgres"])
def repository(request, tmp_path, simulated_data, monkeypatch):
    """An applied repository with nothing materialised: embedded, or with servers for store, registry and ledger."""
    monkeypatch.setattr(UserStatistics, "chunk_rows", CHUNK_ROWS)
    target = init_repository(tmp_path / "feature_repo", data=simulated_data)
    if request.param == "sqlite":
        apply(target)
        yield target
        return
    url = request.getfixturevalue("database")
    with redis_server() as server:
        use_redis(target, server.url)
        store, engine = target / "feature_store.yaml", target / "recsys_llm.yaml"
        settings = yaml.safe_load(store.read_text()) | {"registry": {"registry_type": "sql", "path": url}}
        store.write_text(yaml.safe_dump(settings))
        engine.write_text(yaml.safe_dump(yaml.safe_load(engine.read_text()) | {"ledger": url}))
        apply(target)
        yield target


def test_fifteen_concurrent_materialisations_of_one_view_keep_all_intervals(repository):
    moments = times(repository)
    ends = [moments[len(moments) * share // 16] for share in range(1, 16)]

    def several(number: int) -> None:
        for end in ends[number::3]:
            materialize(repository, VIEW, end=end)

    materialize(repository, VIEW, end=moments[0])
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
    materialize(repository, VIEW, end=moments[0])
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
