"""No password is shown or left behind: a production repository whose passwords are canaries, and all that it says."""

from __future__ import annotations

import base64
import json
import logging
import os
import pickle
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import pytest
import redis
import sqlalchemy as sa
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
from redis.backoff import NoBackoff
from redis.retry import Retry

from recsys_llm import schema
from recsys_llm.commands.metrics_cli import materialized_until
from recsys_llm.config import load_config
from recsys_llm.engine.ray_worker import worker_config
from recsys_llm.errors import ConfigError, RecsysLLMError, StoreError
from recsys_llm.files import read_signed_json, signed_json
from recsys_llm.metrics import LagCollector
from recsys_llm.producers import open_ledger
from recsys_llm.retrieval import FeatureClient, LookupClient, open_store
from recsys_llm.sources import open_source
from recsys_llm.stores import RedisOnlineStore
from tests.security import canary
from tests.security.canary import hits
from tests.security.production import ITEMS, PROFILE, Production, production_repository, told
from tests.services import redis_server
from tests.workspace import CHEAP_VIEWS

pytestmark = pytest.mark.security


@pytest.fixture(scope="module")
def production(tmp_path_factory, simulated_data, postgres_url) -> Iterator[Production]:
    with production_repository(tmp_path_factory.mktemp("secrets"), simulated_data, postgres_url) as made:
        yield made


def test_the_search_finds_a_password_in_each_way_of_writing_it(tmp_path, production):
    for written in (
        canary.REDIS,
        quote(canary.POSTGRES, safe=""),
        canary.WRONG.rpartition("@")[2],
        base64.b64encode(f"tester:{canary.POSTGRES}".encode()).decode(),
        base64.urlsafe_b64encode(f"redis://:{quote(canary.REDIS, safe='')}@host".encode()).decode(),
        canary.REDIS.encode().hex(),
    ):
        assert hits("here", f"some {written} text")
        (tmp_path / "file").write_text(f"some {written} text")
        assert canary.in_files(tmp_path)
    assert hits("environment", dict(os.environ))
    with pytest.raises(ValueError) as error:
        raise ValueError(canary.REDIS)
    assert hits("error", told(error.value))


def test_nothing_that_is_said_or_left_behind_holds_a_password(production, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    commands = [
        ("doctor", "--json", str(tmp_path / "doctor.json")),
        ("repair", schema.USER_STATS),
        ("compact", schema.USER_STATS),
        ("forget", "--user", "u00007", "--json", str(tmp_path / "forget.json")),
        ("explain", schema.USER_STATS, "u00008", "--json", str(tmp_path / "explain.json")),
        ("plan", schema.USER_STATS, "--start", "1960-01-01", "--json", str(tmp_path / "plan.json")),
        ("export-serving", schema.RANKER_BASELINE, "--out", str(tmp_path / "serving.json")),
    ]
    error, said = production.feast("apply")
    assert error is None, said
    assert hits("apply", said) == []
    for command in commands:
        done = production.run(*command)
        assert done.returncode in (0, 1), done.stderr
        assert done.stdout
        assert hits(command[0], done.stdout + done.stderr) == []
    assert len(list(tmp_path.iterdir())) == 5
    assert canary.in_files(tmp_path) == []
    assert canary.in_files(production.repository) == []
    assert list((production.repository / "prom").glob("*.prom"))
    engine = sa.create_engine(production.database, poolclass=sa.NullPool)
    assert canary.in_database(engine) == []
    with redis.Redis(port=int(production.address.rpartition(":")[2]), password=canary.REDIS) as client:
        assert canary.in_redis(client) == []
    registry = CollectorRegistry()
    store = open_store(production.repository, config_file=PROFILE)
    registry.register(LagCollector(store.project, lambda: materialized_until(store)))
    assert schema.USER_STATS.encode() in generate_latest(registry)
    assert hits("metrics", generate_latest(registry) + generate_latest(REGISTRY)) == []
    assert hits("logs", caplog.text) == []


FEAST = """
import logging
logging.basicConfig(level=logging.DEBUG, format="%(levelname)s %(name)s %(message)s")
from feast.cli.cli import cli
cli()
"""
"""Feast's command with all that its libraries log; its own --log-level reaches few of them."""


def test_a_process_of_its_own_logs_no_password(production):
    profile = ["-c", str(production.repository), "-f", str(production.repository / PROFILE)]
    command = [sys.executable, "-c", FEAST, *profile, *production.materialize()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "DEBUG" in done.stderr
    lines = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    assert {line["view"] for line in lines if line["message"] == "materialized"} == set(CHEAP_VIEWS)
    assert hits("stdout", done.stdout) == []
    assert hits("stderr", done.stderr) == []


def test_urls_may_leave_the_password_to_libpq(production, monkeypatch):
    for variable in READERS:
        monkeypatch.setenv(variable, shown(production.database._replace(password=None)))
    monkeypatch.setenv("PGPASSWORD", canary.POSTGRES)
    assert production.lookup().store_error is None
    for arguments in (production.materialize(), ["configuration"]):
        error, said = production.feast(*arguments)
        assert error is None, said
        assert hits(arguments[0], said) == []
    monkeypatch.setenv("REGISTRY_URL", shown(production.database))
    assert hits("configuration", production.feast("configuration")[1])  # Feast prints the file with variables expanded


def test_a_serving_manifest_names_where_the_password_is(production, tmp_path, monkeypatch):
    file = tmp_path / "serving.json"
    production.run("export-serving", schema.RANKER_BASELINE, "--out", str(file))
    with LookupClient(file) as client:
        assert hits("client", [client, client._redis, client._manifest]) == []
        found, expected = client.lookup("u00001", ITEMS), production.lookup()
        assert found.status(schema.ITEM_STATS).tolist() == expected.status(schema.ITEM_STATS).tolist()
    monkeypatch.setenv("REDIS_PASSWORD", canary.WRONG)
    at_once = {"retry": Retry(NoBackoff(), 0)}
    with LookupClient(file, redis_options=at_once) as client, pytest.raises(StoreError, match="Authentic") as refused:
        client.lookup("u00001", ITEMS)
    assert hits("refused", told(refused.value)) == []
    monkeypatch.delenv("REDIS_PASSWORD")
    with pytest.raises(ConfigError, match="without redis_options=.*names REDIS_PASSWORD, which is not set"):
        LookupClient(file)
    (tmp_path / "secret").write_text(f"{canary.REDIS}\n")
    content = read_signed_json(file.read_bytes())
    content["store"] = {**content["store"], "password_env": None, "password_file": str(tmp_path / "secret")}
    file.write_bytes(signed_json(content))
    with LookupClient(file) as client:
        assert client.lookup("u00001", ITEMS).store_error is None


def test_no_object_shows_a_password(production):
    store = open_store(production.repository, config_file=PROFILE)
    config, online = load_config(production.repository), store.provider.online_store
    assert sa.make_url(store.config.registry.path).password == canary.POSTGRES  # it is there, and not shown
    ledger, client = open_ledger(config), online._get_client(store.config.online_store)
    shown = [store, store.config, store.config.registry, store.config.online_store, store.config.batch_engine]
    shown += [store.registry, store.registry.write_engine, store.registry.read_engine, store.provider, online]
    shown += [client, client.connection_pool, online._breaker, store.config.online_store.model_dump()]
    shown += [config, config.sources, config.sources.items, ledger, ledger._engine, ledger._engine.pool]
    shown += [open_source(config.sources.items, config.root, name="items"), worker_config(config)]
    shown += [pickle.dumps(worker_config(config))]
    with FeatureClient(store=store) as features:
        shown += [features, features.lookup("u00001", ITEMS, service=schema.RANKER_BASELINE)]
    ledger.close()
    for number, one in enumerate(shown):
        assert hits(f"{number}: {type(one).__name__}", one) == []
        assert hits(f"{number}: {type(one).__name__}", repr(one)) == []


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def shown(url: sa.URL) -> str:
    return url.render_as_string(hide_password=False)


DATABASES: dict[str, Callable[[sa.URL], str]] = {
    "wrong password": lambda url: shown(url.set(password=canary.WRONG)),
    "nobody listens": lambda url: shown(url.set(port=closed_port())),
    "no such database": lambda url: shown(url.set(database="nowhere")),
    "no such driver": lambda url: shown(url.set(drivername="postgresql+nothing")),
    # As many write it at first.
    "not encoded": lambda url: shown(url.set(password="HERE")).replace("HERE", canary.POSTGRES),
    "an at sign": lambda url: shown(url.set(password="HERE")).replace("HERE", f"{canary.TOKEN}@{canary.TOKEN}"),
    "no URL": lambda url: canary.POSTGRES,
}
READERS = {
    "REGISTRY_URL": ("apply", "doctor", "lookup"),
    "WAREHOUSE_URL": ("materialize", "plan"),
    "LEDGER_URL": ("materialize", "repair"),
}
REDISES = {
    "wrong password": {"REDIS_PASSWORD": canary.WRONG},
    "nobody listens": {"REDIS_ADDRESS": f"127.0.0.1:{closed_port()}"},
    "a URL": {"REDIS_ADDRESS": f"redis://:{canary.REDIS}@127.0.0.1:6379"},
    "a URL, encoded": {"REDIS_ADDRESS": f"redis://:{quote(canary.REDIS, safe='')}@127.0.0.1:6379"},
    "in the address": {"REDIS_ADDRESS": f"127.0.0.1:6379,password={canary.REDIS}"},
    "in the address, misspelt": {"REDIS_ADDRESS": f"127.0.0.1:6379,passwort={canary.REDIS}"},
    "not set": {"REDIS_PASSWORD": ""},
}


def fails(production: Production, what: str) -> None:
    """Do something that must fail by an error of ours, which shows no password."""
    if what in ("apply", "materialize"):
        error, said = production.feast(*(["apply"] if what == "apply" else production.materialize()))
        assert isinstance(error, RecsysLLMError), said
    elif what == "lookup":
        with pytest.raises(RecsysLLMError) as caught:
            production.lookup()
        said = told(caught.value)
    else:
        arguments = {"plan": [schema.USER_STATS, "--start", "1960-01-01"], "repair": [schema.USER_STATS]}
        done = production.run(what, *arguments.get(what, []))
        said = done.stdout + done.stderr
        assert done.returncode in (1, 2)
        assert "Error: " in done.stderr
    assert hits(what, said) == []


@pytest.mark.parametrize("variable", READERS)
@pytest.mark.parametrize("failure", DATABASES)
def test_a_database_that_fails(production, monkeypatch, caplog, capfd, variable, failure):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv(variable, DATABASES[failure](production.database))
    for what in READERS[variable]:
        fails(production, what)
    assert hits("logs", caplog.text) == []
    assert hits("output", capfd.readouterr()) == []


@pytest.mark.parametrize("failure", REDISES)
def test_a_redis_that_fails(production, monkeypatch, caplog, capfd, failure):
    caplog.set_level(logging.DEBUG)
    for variable, value in REDISES[failure].items():
        monkeypatch.setenv(variable, value)
    for what in ("lookup", "materialize", "repair"):
        fails(production, what)
    assert hits("logs", caplog.text) == []
    assert hits("output", capfd.readouterr()) == []


def test_a_redis_that_dies_in_the_middle(production, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    with redis_server(password=canary.REDIS) as server:
        monkeypatch.setenv("REDIS_ADDRESS", f"127.0.0.1:{server.port}")
        begin = RedisOnlineStore.begin_run

        def begun(*arguments: Any) -> str:
            run = begin(*arguments)
            server.process.kill()
            server.process.wait()
            return run

        monkeypatch.setattr(RedisOnlineStore, "begin_run", begun)
        fails(production, "materialize")
        fails(production, "lookup")
        batch = production.lookup(on_store_error="defaults")
        assert hits("defaults", [batch, batch.store_error]) == []
    assert hits("logs", caplog.text) == []


SETTINGS = {
    "recsys_llm.yaml": (
        "sources: [{}",
        "ledger: @{}",
        "sources: {}",
        "sources: {{items: {}}}",
        "ledger: [{}]",
        "x: {}",
    ),
    PROFILE: ("registry: [{}", "registry: {{path: {}}}", "project: {}", "registry: {{registry_type: sql, path: [{}]}}"),
}


@pytest.mark.parametrize(("file", "line"), [(file, line) for file, lines in SETTINGS.items() for line in lines])
def test_a_file_that_can_not_be_read_is_not_quoted(tmp_path, production, file, line):
    for name in SETTINGS:
        shutil.copy(production.repository / name, tmp_path / name)
    (tmp_path / file).write_text(line.format(shown(production.database)) + "\n")
    with pytest.raises(RecsysLLMError) as refused:
        load_config(tmp_path) if file == "recsys_llm.yaml" else open_store(tmp_path, config_file=PROFILE).registry
    assert hits(line, told(refused.value)) == []
