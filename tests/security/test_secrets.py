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
import traceback
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow.parquet as pq
import pytest
import redis
import sqlalchemy as sa
import yaml
from click.testing import CliRunner
from feast.cli.cli import cli as feast_command
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest

from recsys_llm import schema
from recsys_llm.commands.metrics_cli import materialized_until
from recsys_llm.commands.repository import init_repository
from recsys_llm.config import load_config
from recsys_llm.engine.ray_worker import worker_config
from recsys_llm.errors import RecsysLLMError
from recsys_llm.metrics import LagCollector
from recsys_llm.producers import open_ledger
from recsys_llm.producers.user_statistics import UserStatistics
from recsys_llm.retrieval import FeatureClient, LookupClient, open_store
from recsys_llm.sources import open_source
from recsys_llm.timestamps import now
from tests.command_line import run_main
from tests.security import canary
from tests.security.canary import hits
from tests.services import redis_server
from tests.workspace import CHEAP_VIEWS, own_modules

pytestmark = pytest.mark.security

PROFILE = "feature_store.prod.yaml"
ITEMS = ["i00001", "i00002"]


@dataclass(frozen=True)
class Production:
    """A repository of the production profile, materialised; its addresses are in the environment."""

    repository: Path
    database: sa.URL
    address: str

    def feast(self, *arguments: str, level: str = "debug") -> tuple[int, str]:
        """Run Feast's own command in this process; return its exit code and all that it said, tracebacks too."""
        logger, root = logging.getLogger(), list(logging.getLogger().handlers)
        levels = {name: logging.getLogger(name).level for name in logging.root.manager.loggerDict}
        with own_modules(self.repository):
            profile = ["-c", str(self.repository), "--log-level", level, "-f", str(self.repository / PROFILE)]
            done = CliRunner().invoke(feast_command, [*profile, *arguments])
        logger.handlers = root
        for name, before in levels.items():
            logging.getLogger(name).setLevel(before)
        return done.exit_code, done.output + ("" if done.exception is None else told(done.exception))

    def materialize(self) -> tuple[int, str]:
        """Run ``feast materialize`` for all time."""
        views = [part for view in CHEAP_VIEWS for part in ("-v", view)]
        return self.feast("materialize", "1960-01-01T00:00:00", f"{now():%Y-%m-%dT%H:%M:%S}", *views)


def told(error: BaseException) -> str:
    """Return how an error and those behind it show themselves."""
    chain: list[BaseException] = []
    rest: list[BaseException | None] = [error]
    while rest:
        one = rest.pop()
        if one is not None and one not in chain:
            chain.append(one)
            rest += [one.__cause__, one.__context__]
    return "".join(traceback.format_exception(error)) + "".join(f"{one} {one!r} {one.args}" for one in chain)


def opened(engines: list[sa.Engine], *arguments: Any, **options: Any) -> sa.Engine:
    """Make an engine, and take note of it."""
    engines.append(sa.create_engine(*arguments, **options))
    return engines[-1]


@pytest.fixture(scope="module")
def production(tmp_path_factory, simulated_data, postgres_url) -> Iterator[Production]:
    name = f"secrets_{uuid.uuid4().hex[:8]}"
    admin = sa.create_engine(postgres_url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        role = f"create role {name} login password '{canary.POSTGRES}'"
        connection.execute(sa.text(role.replace(":", r"\:")))
        connection.execute(sa.text(f"create database {name} owner {name}"))
    url = sa.make_url(postgres_url).set(database=name, username=name, password=canary.POSTGRES)
    repository = init_repository(tmp_path_factory.mktemp("secrets") / "feature_repo", data=simulated_data)
    profile = yaml.safe_load((repository / PROFILE).read_text())
    profile["batch_engine"]["executor"] = "local"
    profile["online_store"]["timeout_ms"] = 2_000
    (repository / PROFILE).write_text(yaml.safe_dump(profile))
    settings = yaml.safe_load((repository / "recsys_llm.yaml").read_text())
    warehouse = sa.create_engine(url, poolclass=sa.NullPool)
    for table in ("items", "interactions"):
        pq.read_table(simulated_data / f"{table}.parquet").to_pandas().to_sql(table, warehouse, index=False)
        del settings["sources"][table]["parquet"]
        settings["sources"][table] |= {"sql": "${WAREHOUSE_URL}", "query": f"select * from {table}"}
    settings |= {"ledger": "${LEDGER_URL}", "metrics": {"textfile": "prom"}}
    (repository / "recsys_llm.yaml").write_text(yaml.safe_dump(settings))
    patch = pytest.MonkeyPatch()
    engines: list[sa.Engine] = []  # Feast never closes the connections of its registries' pools
    patch.setattr("feast.infra.registry.sql.create_engine", partial(opened, engines))
    try:
        with redis_server(password=canary.REDIS) as server:
            made = Production(repository, url, f"127.0.0.1:{server.port}")
            for variable in ("WAREHOUSE_URL", "REGISTRY_URL", "LEDGER_URL"):
                patch.setenv(variable, url.render_as_string(hide_password=False))
            patch.setenv("REDIS_ADDRESS", made.address)
            patch.setenv("REDIS_PASSWORD", canary.REDIS)
            patch.setenv("FEAST_FS_YAML_FILE_PATH", str(repository / PROFILE))  # for commands without -f
            for done in (made.feast("apply"), made.materialize()):
                assert done[0] == 0, done[1]
                assert hits("feast", done[1]) == []
            yield made
    finally:
        patch.undo()
        for engine in engines:
            engine.dispose()
        with admin.connect() as connection:
            connection.execute(sa.text(f"drop database {name} with (force)"))
            connection.execute(sa.text(f"drop role {name}"))
        admin.dispose()


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


def test_nothing_that_is_left_behind_holds_a_password(production, tmp_path):
    commands = [
        ("doctor", "--json", str(tmp_path / "doctor.json"), "-f", PROFILE),
        ("repair", schema.USER_STATS, "-f", PROFILE),
        ("compact", schema.USER_STATS),
        ("forget", "--user", "u00007", "--json", str(tmp_path / "forget.json"), "-f", PROFILE),
        ("explain", schema.USER_STATS, "u00008", "--json", str(tmp_path / "explain.json"), "-f", PROFILE),
        ("plan", schema.USER_STATS, "--start", "1960-01-01", "--json", str(tmp_path / "plan.json")),
        ("export-serving", schema.RANKER_BASELINE, "--out", str(tmp_path / "serving.json"), "-f", PROFILE),
    ]
    for command in commands:
        done = run_main(*command, "-C", str(production.repository))
        assert done.returncode in (0, 1), done.stderr
        assert done.stdout
        assert hits(command[0], done.stdout + done.stderr) == []
    assert len(list(tmp_path.iterdir())) == 5
    assert canary.in_files(tmp_path) == []
    assert canary.in_files(production.repository) == []
    engine = sa.create_engine(production.database, poolclass=sa.NullPool)
    assert canary.in_database(engine) == []
    with redis.Redis(port=int(production.address.rpartition(":")[2]), password=canary.REDIS) as client:
        assert canary.in_redis(client) == []


def test_no_object_shows_a_password(production):
    store = open_store(production.repository, config_file=PROFILE)
    config, online = load_config(production.repository), store.provider.online_store
    assert canary.POSTGRES in sa.make_url(store.config.registry.path).password  # it is there, and not shown
    ledger, client = open_ledger(config), online._get_client(store.config.online_store)
    shown = [store, store.config, store.config.registry, store.config.registry_config, store.config.online_store]
    shown += [store.registry, store.registry.write_engine, store.registry.read_engine, store.provider, online]
    shown += [store.config.batch_engine, client, client.connection_pool, online._breaker]
    shown += [config, config.sources, config.sources.items, ledger, ledger._engine, ledger._engine.pool]
    shown += [open_source(config.sources.items, config.root, name="items"), worker_config(config)]
    shown += [pickle.dumps(worker_config(config)), store.config.online_store.model_dump()]
    with FeatureClient(store=store) as features:
        batch = features.lookup("u00001", ITEMS, service=schema.RANKER_BASELINE)
        shown += [features, batch, features.training_set]
    ledger.close()
    for number, one in enumerate(shown):
        assert hits(f"{number}: {type(one).__name__}", one) == []
        assert hits(f"{number}: {type(one).__name__}", repr(one)) == []


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def unquoted(url: sa.URL) -> str:
    """Return a URL as many write it at first: with the password as it is."""
    return url.set(password="PASSWORD").render_as_string(hide_password=False).replace("PASSWORD", canary.POSTGRES)


FAILURES = {
    "wrong password": lambda url: url.set(password=canary.WRONG).render_as_string(hide_password=False),
    "nobody listens": lambda url: url.set(port=closed_port()).render_as_string(hide_password=False),
    "no such database": lambda url: url.set(database="nowhere").render_as_string(hide_password=False),
    "no such driver": lambda url: url.set(drivername="postgresql+nothing").render_as_string(hide_password=False),
    "not encoded": unquoted,
    "at sign": lambda url: f"postgresql+psycopg://me:{canary.TOKEN}@{canary.TOKEN}@127.0.0.1:{url.port}/x",
    "no URL": lambda url: canary.POSTGRES,
}


def failing(production: Production) -> list[tuple[str, str]]:
    """Return what commands and a lookup say that are expected to fail, but for those that need no failing server."""
    said = []
    for what, (code, text) in {"apply": production.feast("apply"), "materialize": production.materialize()}.items():
        said.append((f"feast {what}: {code}", text))
    for command in (["doctor"], ["repair", schema.USER_STATS], ["forget", "--user", "u00009"]):
        try:
            done = run_main(*command, "-C", str(production.repository), "-f", PROFILE)
            said.append((f"{command[0]}: {done.returncode}", done.stdout + done.stderr))
        except Exception as error:
            said.append((f"{command[0]}: {type(error).__name__}", told(error)))
    try:
        with FeatureClient(production.repository, config_file=PROFILE) as client:
            client.lookup("u00001", ITEMS, service=schema.RANKER_BASELINE)
            said.append(("lookup: none", ""))
    except Exception as error:
        said.append((f"lookup: {type(error).__name__}", told(error)))
    return said


@pytest.mark.parametrize("variable", ["REGISTRY_URL", "WAREHOUSE_URL", "LEDGER_URL"])
@pytest.mark.parametrize("failure", FAILURES)
def test_a_database_that_fails(production, monkeypatch, caplog, capfd, variable, failure):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv(variable, FAILURES[failure](production.database))
    said = failing(production)
    for what, text in said:
        print("##", what, text[-1500:])
        assert hits(what, text) == []
    assert hits("logs", caplog.text) == []
    assert hits("output", "".join(capfd.readouterr())) == []


@pytest.mark.parametrize(
    ("variable", "value"), [("REDIS_PASSWORD", canary.WRONG), ("REDIS_ADDRESS", "127.0.0.1:1"), 
    ("REDIS_ADDRESS", f"redis://:{canary.REDIS}@127.0.0.1:6379"),
    ("REDIS_ADDRESS", f"127.0.0.1:6379,password={canary.REDIS}"),
    ("REDIS_ADDRESS", f"127.0.0.1:6379,passwort={canary.REDIS}"),
    ]
)
def test_a_redis_that_fails(production, monkeypatch, caplog, capfd, variable, value):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv(variable, value)
    for what, text in failing(production):
        print("##", what, text[-1500:])
        assert hits(what, text) == []
    assert hits("logs", caplog.text) == []
    assert hits("output", "".join(capfd.readouterr())) == []
