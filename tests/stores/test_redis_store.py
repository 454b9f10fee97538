"""Our Redis store's settings: secrets, ACL users, TLS, sentinels, a cluster, and the marks of runs."""

from __future__ import annotations

import logging
import socket
import ssl
import subprocess
import uuid

import pytest
import redis
from feast import RepoConfig

from recsys_llm import schema
from recsys_llm.errors import ConfigError, EmptiedStoreError, EvictingStoreError, StoreError
from recsys_llm.stores import RedisOnlineStore, RedisOnlineStoreConfig, redis_connection
from recsys_llm.stores.runs import RunMarkers
from tests.faults.proxy import proxied
from tests.retrieval.feast_repository import PLAIN, Repository, hours
from tests.services import redis_binary, redis_cluster, redis_server

CANARY = "canary-7f3a,with=comma"
PATIENT = {"timeout_ms": 2_000}


def client_of(**settings):
    return RedisOnlineStore()._get_client(RedisOnlineStoreConfig(**{**PATIENT, **settings}))


def repo_config(folder, online):
    registry = {"registry_type": "sql", "path": f"sqlite:///{folder}/registry.db"}
    return RepoConfig(
        project="p", provider="local", registry=registry, online_store=online, entity_key_serialization_version=3
    )


@pytest.mark.security
def test_no_way_of_showing_the_store_shows_the_password(tmp_path, monkeypatch, caplog, capfd):
    monkeypatch.setenv("STORE_PASSWORD", CANARY)
    caplog.set_level(logging.DEBUG)
    with redis_server(password=CANARY) as server:
        online = {"type": "recsys_llm.stores.RedisOnlineStore", "connection_string": f"127.0.0.1:{server.port}"}
        online |= {"password_env": "STORE_PASSWORD", **PATIENT}
        repository = Repository(tmp_path, online=online)
        store = repository.store
        shown = [repr(store.config), str(store.config), store.config.model_dump_json(), repr(store)]
        repository.write_online(schema.ITEM_STATS, [{"item_id": "i0", "at": hours(1), "n_events": 3}])
        client = store.provider.online_store._get_client(store.config.online_store)
        shown += [repr(client), repr(client.connection_pool), repr(store.config.online_store)]
        shown += [str(store.config.online_store.model_dump())]
        monkeypatch.setenv("STORE_PASSWORD", CANARY + "x")
        with pytest.raises(StoreError) as refused:
            RedisOnlineStore().begin_run(store.config, "a_view")
        shown += [repr(refused.value), repr(refused.value.__context__)]
    shown += [caplog.text, *capfd.readouterr()]
    assert not [text for text in shown if "canary" in text]


@pytest.mark.security
@pytest.mark.parametrize("setting", ["password", "socket_timeout", "retry"])
def test_a_connection_string_has_no_secret_and_no_limits(tmp_path, setting):
    online = {"type": "recsys_llm.stores.RedisOnlineStore", "connection_string": f"host:6379,{setting}={CANARY}"}
    with pytest.raises(ConfigError, match=f"expected no {setting}= in it; use the key") as error:
        _ = repo_config(tmp_path, online).online_store
    assert "canary" not in str(error.value)


def test_the_password_comes_from_one_place(tmp_path, monkeypatch):
    file = tmp_path / "secret"
    with pytest.raises(ConfigError, match="found both"):
        RedisOnlineStoreConfig(password_env="A", password_file=file)
    with pytest.raises(ConfigError, match="secret: No such file"):
        client_of(password_file=file)
    monkeypatch.delenv("A", raising=False)
    with pytest.raises(ConfigError, match="password_env names A, which is not set"):
        client_of(password_env="A")
    file.write_text("12345\n")  # a number stays a text
    with redis_server(password="12345") as server:
        assert client_of(connection_string=f"127.0.0.1:{server.port}", password_file=file).ping()


def test_glide_is_refused():
    with pytest.raises(ConfigError, match="found glide"):
        RedisOnlineStoreConfig(client="glide")


def test_a_write_without_a_look_at_the_times_is_refused():
    with pytest.raises(ConfigError, match="expected no skip_dedup, found true.*remove the key"):
        RedisOnlineStoreConfig(skip_dedup=True)
    assert RedisOnlineStoreConfig(skip_dedup=False).skip_dedup is False


def test_an_acl_user_with_the_least_rights(tmp_path, monkeypatch):
    monkeypatch.setenv("SERVING", "pw")
    serving = ("--user", "serving", "on", ">pw", "~*", "+hmget", "+info", "+ping", "+client")
    with redis_server(*serving) as server:
        address = f"127.0.0.1:{server.port}"
        client = client_of(connection_string=address, username="serving", password_env="SERVING")
        assert client.hmget("nothing", ["a"]) == [None]
        with pytest.raises(redis.exceptions.NoPermissionError):
            client.hset("a", "b", "c")
        with redis.Redis.from_url(server.url) as admin:
            admin.acl_setuser("serving", commands=["-info"], enabled=True)
        blind = client_of(connection_string=address, username="serving", password_env="SERVING")
        with pytest.raises(EvictingStoreError, match="can't tell whether it evicts"):
            blind.ping()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=127.0.0.1"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "cert.pem"]
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl: not on PATH")
    return folder


def test_tls(redis_url, certificate):
    port = int(redis_url.rsplit(":", 1)[1].split("/")[0])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    with proxied(port, tls=context) as proxy:
        address = f"127.0.0.1:{proxy.port},ssl=true"
        assert client_of(connection_string=f"{address},ssl_ca_certs={certificate}/cert.pem").ping()
        with pytest.raises(redis.ConnectionError, match="certificate verify failed"):
            client_of(connection_string=address).ping()
        with pytest.raises((redis.ConnectionError, redis.TimeoutError)):
            client_of(connection_string=f"127.0.0.1:{proxy.port}", timeout_ms=200).ping()


def check_rows(folder, online, monkeypatch):
    repository = Repository(folder, online={"type": "recsys_llm.stores.RedisOnlineStore", **PATIENT, **online})
    rows = [{"item_id": f"i{number}", "at": hours(1), "n_events": number} for number in range(50)]
    repository.write_online(schema.ITEM_STATS, rows)
    store = repository.store
    found = store.get_online_features([f"{schema.ITEM_STATS}:n_events"], [{"item_id": f"i{n}"} for n in range(50)])
    assert found.to_dict()["n_events"] == list(range(50))
    run = store.provider.online_store.begin_run(store.config, schema.ITEM_STATS)
    store.provider.online_store.end_run(store.config, schema.ITEM_STATS, run)
    assert store.provider.online_store.unpublished(store.config, [schema.ITEM_STATS, "other"]) == ["other"]
    with store.provider.online_store.bulk_writes():
        store.provider.online_store.unpublished(store.config, [schema.ITEM_STATS])  # the writer's connection is open
    client = store.provider.online_store._get_client(store.config.online_store)
    node = client.get_random_node().redis_connection if hasattr(client, "get_random_node") else client
    node.config_set("maxmemory-policy", "allkeys-lru")
    monkeypatch.setattr(redis_connection, "POLICY_SECONDS", 0.0)
    with pytest.raises(EvictingStoreError):
        node.get("a")
    with store.provider.online_store.bulk_writes(), pytest.raises(EvictingStoreError):
        store.provider.online_store.begin_run(store.config, schema.ITEM_STATS)
    with pytest.raises(EvictingStoreError):
        repository.write_online(schema.ITEM_STATS, rows)


def test_a_cluster(tmp_path, monkeypatch):
    with redis_cluster("--cluster-require-full-coverage", "no") as server:
        settings = {"redis_type": "redis_cluster", "connection_string": f"127.0.0.1:{server.port}"}
        check_rows(tmp_path, settings, monkeypatch)


def test_sentinels(tmp_path, monkeypatch):
    with redis_server() as server:
        settings = tmp_path / "sentinel.conf"
        settings.write_text(f"sentinel monitor shop 127.0.0.1 {server.port} 1\n")
        command = [str(redis_binary()), str(settings), "--sentinel"]
        with redis_server(command=command) as sentinel:
            names = f"127.0.0.1:{sentinel.port}"
            online = {"redis_type": "redis_sentinel", "sentinel_master": "shop", "connection_string": names}
            check_rows(tmp_path, online, monkeypatch)


def test_marks_of_runs(redis_url):
    with redis.Redis.from_url(redis_url) as client:
        runs = RunMarkers(client, uuid.uuid4().hex)
        assert runs.missing(["v"]) == ["v"]
        assert runs.begin("v", "one") == "one"
        assert runs.begin("v", "two") == "one"  # a killed run goes on under its name
        assert runs.missing(["v"]) == ["v"]
        runs.end("v", "one")
        assert runs.missing(["v", "w"]) == ["w"]
        assert runs.begin("v", "three") == "one"
        runs.end("v", "one")
        client.delete(runs._key)
        with pytest.raises(EmptiedStoreError, match="was emptied while view v was published"):
            runs.end("v", "one")
        assert runs.begin("v", "four") == "four"
        runs.end("v", "four")
        runs.forget("v")
        assert runs.missing(["v"]) == ["v"]


def test_nothing_is_asked_of_the_server_before_it_is_needed(tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        online = {"connection_string": f"127.0.0.1:{closed.getsockname()[1]}"}
        repository = Repository(tmp_path, online={"type": "recsys_llm.stores.RedisOnlineStore", **online})
        assert repository.store.get_feature_service(PLAIN)
