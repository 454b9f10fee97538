"""A Redis cluster that is killed or frozen: typed errors or flagged defaults, in time, and answers again afterwards."""

from __future__ import annotations

import signal
import time
import uuid

import numpy as np
import pytest
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value

from recsys_llm import schema
from recsys_llm.errors import StoreError
from recsys_llm.retrieval import FeatureClient, Status
from tests.faults.servers import kill, restarted
from tests.retrieval.feast_repository import PLAIN, Repository, hours
from tests.services import redis_cluster, wait_for_cluster

pytestmark = pytest.mark.faults

N_EVENTS = schema.feature_column(schema.ITEM_STATS, "n_events")
ITEMS = [f"i{number}" for number in range(200)]
TIMEOUT_MS = 400
"""Four times the default: what has to succeed must not fail because this machine is busy."""
BUDGET_SECONDS = 2.5 * TIMEOUT_MS / 1_000
SLACK_SECONDS = 0.4
"""For everything that isn't waiting for Redis, on a busy machine."""


@pytest.fixture
def server():
    with redis_cluster("--appendonly", "yes", "--appendfsync", "always") as server:
        yield server


@pytest.fixture
def store(tmp_path, server):
    online = {"type": "recsys_llm.stores.RedisOnlineStore", "redis_type": "redis_cluster"}
    online |= {"connection_string": f"127.0.0.1:{server.port}", "timeout_ms": TIMEOUT_MS, "write_timeout_ms": 1_000}
    repository = Repository(tmp_path, online=online | {"breaker_failures": 3}, project=f"p{uuid.uuid4().hex[:8]}")
    rows = [{"item_id": item, "at": hours(1), "n_events": number} for number, item in enumerate(ITEMS)]
    repository.write_online(schema.ITEM_STATS, rows)
    return repository.store


@pytest.fixture
def client(store):
    with FeatureClient(store=store, now=lambda: hours(2)) as client:
        yield client


def ask(client, **options):
    return client.lookup("u", ITEMS, service=PLAIN, **options).scalar(N_EVENTS).tolist()


def assert_fails_in_time(client) -> None:
    for _ in range(5):  # the breaker opens on the way
        start = time.monotonic()
        with pytest.raises(StoreError, match="Redis: .*check that it is up"):
            ask(client)
        batch = client.lookup("u", ITEMS, service=PLAIN, on_store_error="defaults")
        assert time.monotonic() - start < 2 * (BUDGET_SECONDS + SLACK_SECONDS)
        assert np.isnan(batch.scalar(N_EVENTS)).all()
        assert set(batch.status(schema.ITEM_STATS).tolist()) == {Status.UNAVAILABLE}
        assert batch.store_error is not None


@pytest.mark.parametrize("opened", [True, False], ids=["open", "not yet open"])
def test_frozen(client, server, opened):
    if opened:
        assert ask(client) == list(range(200))
    server.process.send_signal(signal.SIGSTOP)
    assert_fails_in_time(client)
    server.process.send_signal(signal.SIGCONT)
    assert ask(client) == list(range(200))


@pytest.mark.parametrize("opened", [True, False], ids=["open", "not yet open"])
def test_killed(client, server, opened):
    if opened:
        assert ask(client) == list(range(200))
    kill(server)
    assert_fails_in_time(client)
    with restarted(server) as again:
        wait_for_cluster(again)
        assert ask(client) == list(range(200))


def test_runs_and_writes_fail_with_our_error(store, server):
    online, config, view = store.provider.online_store, store.config, store.get_feature_view(schema.ITEM_STATS)
    key = EntityKey(join_keys=[schema.ITEM_ID], entity_values=[Value(string_val="i0")])
    row = (key, {"n_events": Value(int64_val=1)}, hours(2), None)
    kill(server)
    fresh = type(online)()
    for asked in (online, fresh):
        with pytest.raises(StoreError, match="check that it is up"):
            asked.begin_run(config, schema.ITEM_STATS)
        with pytest.raises(StoreError, match="check that it is up"):
            asked.unpublished(config, [schema.ITEM_STATS])
        with pytest.raises(StoreError, match="check that it is up"):
            asked.server_info(config)
        with pytest.raises(StoreError, match="check that it is up"):
            asked.online_write_batch(config, view, [row], None)
