"""Rows that Feast writes itself, on a server and a cluster: newer and equal times win, older ones are told."""

from __future__ import annotations

import asyncio
import logging
import threading
import uuid

import pandas as pd
import pytest
import redis
from feast import FeatureStore
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from prometheus_client import REGISTRY

from recsys_llm import schema
from recsys_llm.errors import StoreError
from tests.retrieval.feast_repository import Repository, hours
from tests.services import redis_cluster, redis_server

VIEW = schema.ITEM_STATS


@pytest.fixture(scope="module")
def cluster():
    with redis_cluster() as server:
        yield server


@pytest.fixture(params=["server", "cluster"])
def server(request, redis_url):
    if request.param == "cluster":
        return request.getfixturevalue("cluster").url, {"redis_type": "redis_cluster"}
    return redis_url, {}


def store_on(folder, server, type_="recsys_llm.stores.RedisOnlineStore", **online) -> FeatureStore:
    url, settings = server
    address = url.removeprefix("redis://").split("/")[0]
    config = {"type": type_, "connection_string": address} | settings | online
    if type_ != "redis":
        config |= {"timeout_ms": 2_000}
    return Repository(folder, online=config, project=f"p{uuid.uuid4().hex[:8]}").store


@pytest.fixture
def store(tmp_path, server):
    return store_on(tmp_path, server)


def row(item, at, number):
    key = EntityKey(join_keys=[schema.ITEM_ID], entity_values=[Value(string_val=item)])
    return key, {"n_events": Value(int64_val=number)}, at, None


def write(store, *rows, sync=True, progress=None):
    online, view = store.provider.online_store, store.get_feature_view(VIEW)
    if sync:
        online.online_write_batch(store.config, view, list(rows), progress)
    else:
        asyncio.run(online.online_write_batch_async(store.config, view, list(rows), progress))


def read(store, *items):
    found = store.get_online_features([f"{VIEW}:n_events"], [{schema.ITEM_ID: item} for item in items])
    return found.to_dict()["n_events"]


def counted(store, outcome):
    labels = {"project": store.project, "view": VIEW, "outcome": outcome}
    return REGISTRY.get_sample_value("recsys_llm_pushed_rows_total", labels)


@pytest.mark.parametrize("sync", [True, False], ids=["sync", "async"])
def test_newer_and_equal_times_win_and_older_ones_are_told(store, caplog, sync):
    caplog.set_level(logging.INFO, logger="recsys_llm")
    done = []
    write(store, row("a", hours(5), 1), row("b", hours(5), 2), sync=sync, progress=done.append)
    assert (read(store, "a", "b"), caplog.messages, done) == ([1, 2], [], [2])
    write(store, row("b", hours(5), 3), sync=sync)
    assert read(store, "a", "b") == [1, 3]
    assert caplog.messages == [f"view {VIEW}: 1 rows replaced rows of the same time"]
    caplog.clear()
    write(store, row("c", hours(1), 4), row("b", hours(4), 5), row("a", hours(3), 6), sync=sync)
    assert read(store, "a", "b", "c") == [1, 3, 4]
    (record,) = caplog.records
    assert record.levelname == "WARNING" and record.name.startswith("recsys_llm.")
    assert record.getMessage() == (
        f"view {VIEW}: 2 of 3 rows left out, since Redis holds newer ones of their keys; the first: item_id 'b' at "
        f"{hours(4).isoformat()}"
    )
    assert (record.project, record.view, record.newer, record.equal, record.older) == (store.project, VIEW, 1, 0, 2)
    assert [counted(store, outcome) for outcome in ("newer", "equal", "older")] == [3, 1, 2]


def test_what_is_pushed_goes_that_way(store, caplog):
    for at, number in ((hours(5), 1), (hours(5), 2), (hours(4), 3)):
        row = {schema.ITEM_ID: "a", "n_events": number, "mean_rating": 0.5, "category": "x"}
        row |= {schema.EVENT_TIMESTAMP: at, schema.CREATED_TIMESTAMP: at}
        store.write_to_online_store(VIEW, df=pd.DataFrame([row]))
    assert read(store, "a") == [2]
    assert "1 of 1 rows left out" in caplog.text


def test_of_rows_that_share_a_key_the_newest_stays(store):
    write(store, row("a", hours(2), 1), row("a", hours(4), 2), row("a", hours(3), 3), row("a", hours(4), 4))
    assert read(store, "a") == [4]
    assert [counted(store, outcome) for outcome in ("newer", "equal", "older")] == [2, 1, 1]


def test_a_row_may_have_some_of_the_features(store):
    key, _, at, _ = row("a", hours(1), 0)
    write(store, row("a", hours(1), 1), (key, {"mean_rating": Value(float_val=0.5)}, at, None), row("b", at, 2))
    assert read(store, "a", "b") == [1, 2]


def test_every_byte_is_what_feast_writes(tmp_path, redis_url):
    rows = [row(f"i{number}", hours(number), number) for number in range(1, 700)]

    def dumped(store):
        write(store, *rows)
        with redis.Redis.from_url(redis_url) as client:
            ours = [key for key in client.scan_iter("*") if key.endswith(store.project.encode())]
            return {
                key.removesuffix(store.project.encode()): (client.hgetall(key), client.ttl(key) > 0) for key in ours
            }

    (tmp_path / "feast").mkdir()
    found = dumped(store_on(tmp_path, (redis_url, {}), key_ttl_seconds=500))
    assert len(found) == 699
    assert found == dumped(store_on(tmp_path / "feast", (redis_url, {}), "redis", key_ttl_seconds=500))


def test_writers_at_once_leave_the_newest_row(store):
    items = [f"i{number}" for number in range(8)]
    orders = [[3, 20, 7, 1], [19, 2, 18], [5, 4, 17], [16, 6]]

    def write_in(order):
        for number in order:
            write(store, *(row(item, hours(number), number) for item in items))

    threads = [threading.Thread(target=write_in, args=(order,)) for order in orders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read(store, *items) == [20] * 8


def test_a_cluster_learns_the_script_again_and_counts_right(tmp_path, cluster):
    store = store_on(tmp_path, (cluster.url, {"redis_type": "redis_cluster"}))
    write(store, *(row(f"i{number}", hours(5), number) for number in range(600)))
    with redis.Redis.from_url(cluster.url) as admin:
        admin.script_flush()
        admin.config_resetstat()
        write(store, *(row(f"i{number}", hours(4 + number % 3), -number) for number in range(600)))
        calls = {name: value["calls"] for name, value in admin.info("commandstats").items()}
    assert [counted(store, outcome) for outcome in ("newer", "equal", "older")] == [800, 200, 200]
    # The first trip is refused as a whole, and sent again with the script.
    assert (calls["cmdstat_evalsha"], calls["cmdstat_eval"]) == (600, 512)
    assert "cmdstat_command" not in calls  # nothing is asked of the server but to write


def test_a_server_that_refuses_is_an_error(tmp_path):
    with redis_server("--maxmemory", "100kb", "--maxmemory-policy", "noeviction") as server:
        store = store_on(tmp_path, (server.url, {}))
        with pytest.raises(StoreError, match="Redis: .*OOM.*has memory left"):
            write(store, row("a", hours(1), 1))
