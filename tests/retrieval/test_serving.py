"""The serving manifest and its client: the answers of FeatureClient, without what it needs."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid

import numpy as np
import pytest
import redis

from recsys_llm.errors import ConfigError, ServiceError, StoreError
from recsys_llm.files import read_signed_json, signed_json
from recsys_llm.retrieval import FeatureClient, LookupClient, Status
from recsys_llm.retrieval.serving import read_manifest
from recsys_llm.retrieval.serving_export import export_serving
from tests.command_line import run_main
from tests.retrieval.feast_repository import EVERYTHING, MOOD, PLAIN, Repository, online_config
from tests.retrieval.online_rows import ITEMS, NOW, fill_online
from tests.services import redis_server

CANDIDATES = [f"i{n}" for n in range(ITEMS)] + ["", "ключ", "\U0001f600", "a\x00b", "unknown", "i3"]
LIGHT = """
import json, sys
from datetime import datetime
from recsys_llm import LookupClient

manifest, now, asked = json.loads(sys.stdin.read())
with LookupClient(manifest, now=lambda: datetime.fromisoformat(now)) as client:
    batches = [client.lookup("u1", asked), client.lookup("stale", asked), *client.lookup_many([("nobody", asked)])]
    answers = [
        {
            "pairwise": batch.pairwise.tobytes().hex(),
            "columns": {name: repr(batch.to_pylist(name)) for name in batch.columns},
            "status": {view: batch.status(view).tolist() for view in [*batch.user.status, *batch.item.status]},
        }
        for batch in batches
    ]
print(json.dumps([answers, sorted({name.split(".")[0] for name in sys.modules})]))
"""
HEAVY = {
    "prometheus_client",
    "rich",
    "feast",
    "torch",
    "pandas",
    "pyarrow",
    "google",
    "pydantic",
    "duckdb",
    "sqlalchemy",
    "scipy",
    "yaml",
    "mmh3",
}


@pytest.fixture(params=["sqlite", "redis", "guarded"])
def repository(request, tmp_path):
    url = None if request.param == "sqlite" else request.getfixturevalue("redis_url")
    online = online_config(request.param, tmp_path, url)
    repository = Repository(tmp_path, online=online, project=f"p{uuid.uuid4().hex[:8]}")
    fill_online(repository)
    return repository


@pytest.fixture
def client(repository):
    with FeatureClient(store=repository.store, now=lambda: NOW) as client:
        yield client


@pytest.fixture
def manifest(client, tmp_path):
    file = tmp_path / "made" / "serving.json"
    export_serving(client, EVERYTHING, file)
    return file


def test_the_answers_are_those_of_the_feature_client_without_what_it_imports(client, manifest):
    asked = json.dumps([str(manifest), NOW.isoformat(), CANDIDATES])
    done = subprocess.run([sys.executable, "-c", LIGHT], input=asked, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answers, modules = json.loads(done.stdout)
    assert not HEAVY & set(modules)
    for user, answer in zip(("u1", "stale", "nobody"), answers, strict=True):
        expected = client.lookup(user, CANDIDATES, service=EVERYTHING)
        assert answer["pairwise"] == expected.pairwise.tobytes().hex()
        assert answer["columns"] == {name: repr(expected.to_pylist(name)) for name in expected.columns}
        assert answer["status"] == {
            view: expected.status(view).tolist() for view in [*expected.user.status, *expected.item.status]
        }
    assert answers[1]["status"][MOOD][0] == Status.STALE


def test_lists_that_need_arrow_are_there_for_who_has_it(client, manifest):
    with LookupClient(manifest, now=lambda: NOW) as light:
        ours, expected = light.lookup("u1", CANDIDATES), client.lookup("u1", CANDIDATES, service=EVERYTHING)
        for column in ours.columns:
            one, other = ours.column(column), expected.column(column)
            assert one.tobytes() == other.tobytes() if isinstance(one, np.ndarray) else one.equals(other)
        assert light.lookup("u1", [], service=EVERYTHING).pairwise.shape == (0, 5)
        with pytest.raises(ServiceError, match=f"service '{PLAIN}': the manifest is of '{EVERYTHING}'"):
            light.lookup("u1", ["i0"], service=PLAIN)


def test_a_manifest_is_the_same_when_read(client, manifest):
    read, made = read_manifest(manifest), export_serving(client, EVERYTHING, manifest)
    assert read.layouts == made.layouts
    assert [view.features for view in read.service.views] == [view.features for view in made.service.views]
    assert [view.ttl for view in read.service.views] == [view.ttl for view in made.service.views]
    assert (read.fingerprints, read.bridges) == (made.fingerprints, made.bridges)


def test_an_altered_manifest_is_refused(manifest, tmp_path):
    whole = manifest.read_bytes()
    manifest.write_bytes(whole.replace(b'"ttl_us": 0', b'"ttl_us": 1', 1))
    with pytest.raises(ConfigError, match="serving.json: altered or truncated.*export-serving"):
        LookupClient(manifest)
    manifest.write_bytes(whole[:100])
    with pytest.raises(ConfigError, match="serving.json: "):
        LookupClient(manifest)
    for other in (1, 99):  # an older one lacks the limits of the store
        manifest.write_bytes(signed_json(read_signed_json(whole) | {"format": other}))
        with pytest.raises(ConfigError, match=f"expected format 2, found {other}; write it with .*export-serving"):
            LookupClient(manifest)
    with pytest.raises(ConfigError, match="other.json: not found; write it with `recsys-llm export-serving"):
        LookupClient(tmp_path / "other.json")


def with_default(manifest, column, default):
    content = read_signed_json(manifest.read_bytes())
    (feature,) = [one for view in content["views"] for one in view["features"] if one["column"] == column]
    feature["default"] = default
    manifest.write_bytes(signed_json(content))


def test_the_defaults_of_a_manifest_are_given_where_there_is_no_value(client, manifest):
    events, vector = "item_stats__n_events", "item_text_embedding_v1__embedding"
    expected = client.lookup("u1", CANDIDATES, service=EVERYTHING)
    assert np.isnan(expected.scalar(events)).any()
    assert not np.isnan(expected.scalar(events)).all()
    with_default(manifest, events, -1)
    with_default(manifest, vector, 0.5)
    with LookupClient(manifest, now=lambda: NOW) as light:
        found = light.lookup("u1", CANDIDATES)
    for column, default, values in (
        (events, -1, expected.scalar(events)),
        (vector, 0.5, expected.vector(vector)),
    ):
        missing = np.isnan(values) if values.ndim == 1 else np.isnan(values).all(axis=1)
        given = found.scalar(column) if values.ndim == 1 else found.vector(column)
        assert missing.any()
        assert (given[missing] == default).all()
        assert given[~missing].tobytes() == values[~missing].tobytes()
    assert found.status("item_stats").tolist() == expected.status("item_stats").tolist()
    assert read_manifest(manifest).service.views != client.resolve(EVERYTHING).views


@pytest.mark.parametrize(
    ("column", "default", "message"),
    [
        ("item_stats__n_events", "0", "default of item_stats__n_events: expected a number or 'NaN', found '0'"),
        ("item_stats__n_events", True, "expected a number or 'NaN', found True"),
        ("user_next_items_v1__item_ids", ["i0"], r"expected null for strings, found \['i0'\]"),
    ],
)
def test_a_default_of_another_kind_is_refused(manifest, column, default, message):
    with_default(manifest, column, default)
    with pytest.raises(ConfigError, match=f"serving.json: .*{message}.*export-serving"):
        LookupClient(manifest)


def exported(folder, online):
    repository = Repository(folder, online={**online, "connection_string": "127.0.0.1:1"})
    with FeatureClient(store=repository.store) as client:
        export_serving(client, PLAIN, folder / "serving.json")
    return folder / "serving.json"


def limits_of(client):
    made = client._redis.connection_pool.make_connection()
    own = made.socket_timeout, made.socket_connect_timeout, made.retry.get_retries()
    return (*own, made.budget, made.probe_budget, made.breaker._threshold, made.allow_eviction)


def test_the_limits_are_those_of_the_store_unless_others_are_given(tmp_path):
    ours = {"type": "recsys_llm.stores.RedisOnlineStore", "timeout_ms": 40, "breaker_failures": 7}
    file = exported(tmp_path, ours | {"allow_eviction": True})
    with LookupClient(file) as client:
        assert limits_of(client) == (0.04, 0.04, 1, 0.1, 0.04, 7, True)
    with LookupClient(file, redis_options={"socket_timeout": 2, "unix_socket_path": "/none"}) as client:
        assert limits_of(client)[3:5] == (5, 2)
        assert isinstance(client._redis.connection_pool.make_connection(), redis.UnixDomainSocketConnection)
    with LookupClient(file, redis_options={"socket_timeout": None, "ssl": True}) as client:
        assert limits_of(client)[3:5] == (None, None)
        assert isinstance(client._redis.connection_pool.make_connection(), redis.SSLConnection)
    with pytest.raises(ConfigError, match="expected no connection_pool, .* hand over a client with redis="):
        LookupClient(file, redis_options={"connection_pool": redis.ConnectionPool()})


def test_a_store_of_feast_has_the_limits_of_time_alone(tmp_path):
    """It takes a server that evicts, and has no marks."""
    file = exported(tmp_path, {"type": "redis"})
    with LookupClient(file) as client:
        assert limits_of(client) == (0.1, 0.1, 1, 0.25, 0.1, 5, True)
        assert client._reader.project is None


def test_a_password_is_asked_for_and_never_written(tmp_path):
    with redis_server(password="geheim") as server:
        online = {"type": "redis", "connection_string": f"127.0.0.1:{server.port},db=0,password=geheim"}
        repository = Repository(tmp_path, online=online)
        fill_online(repository)
        file = tmp_path / "serving.json"
        with FeatureClient(store=repository.store, now=lambda: NOW) as client:
            export_serving(client, PLAIN, file)
            expected = client.lookup("u1", ["i2"], service=PLAIN).scalar("item_stats__n_events")
        assert "geheim" not in file.read_text()
        with pytest.raises(ConfigError, match=r"needs password, which .*redis_options=\{'password': \.\.\.\}"):
            LookupClient(file)
        with LookupClient(file, redis_options={"password": "geheim"}, now=lambda: NOW) as client:
            assert client.lookup("u1", ["i2"]).scalar("item_stats__n_events") == expected
        with (
            LookupClient(file, redis_options={"password": "falsch"}) as client,
            pytest.raises(StoreError, match="AuthenticationError") as caught,
        ):
            client.lookup("u1", ["i2"])
        assert "falsch" not in str(caught.value)


def test_stores_that_only_feast_can_read(tmp_path):
    repository = Repository(tmp_path, online=online_config("generic", tmp_path))
    with FeatureClient(store=repository.store) as client:
        with pytest.raises(ServiceError, match="expected an online store of type redis or sqlite, found tests"):
            export_serving(client, PLAIN, tmp_path / "serving.json")
    assert not (tmp_path / "serving.json").exists()


def test_a_cluster_is_read_through_a_client_that_is_handed_over(tmp_path, redis_url):
    online = online_config("redis", tmp_path, redis_url)
    repository = Repository(tmp_path, online=online, project=f"p{uuid.uuid4().hex[:8]}")
    fill_online(repository)
    repository.store.config.online_store.redis_type = "redis_cluster"
    with FeatureClient(store=repository.store) as client:
        export_serving(client, PLAIN, tmp_path / "serving.json")
    with pytest.raises(ConfigError, match="a cluster or has sentinels; hand over a client"):
        LookupClient(tmp_path / "serving.json")
    with redis.Redis.from_url(redis_url) as connection:
        with LookupClient(tmp_path / "serving.json", redis=connection, now=lambda: NOW) as client:
            assert client.lookup("u1", ["i2"]).scalar("item_stats__n_events").tolist() == [2**40]
        assert connection.ping()  # somebody else's


def test_the_command(tmp_path):
    repository = Repository(tmp_path, online=online_config("sqlite", tmp_path))
    fill_online(repository)
    (tmp_path / "feature_store.yaml").write_text(
        "project: shop\nprovider: local\nregistry: {registry_type: sql, path: 'sqlite:///registry.db'}\n"
        "offline_store: {type: duckdb}\nonline_store: {type: sqlite, path: data/online.db}\n"
        "entity_key_serialization_version: 3\n"
    )
    out = tmp_path / "serving.json"
    done = run_main("export-serving", PLAIN, "--out", str(out), "-C", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "plain, 2 views, 4 features" in done.stdout
    with LookupClient(out, now=lambda: NOW) as client:
        assert client.lookup("u1", ["i2"]).scalar("item_stats__n_events").tolist() == [2**40]
