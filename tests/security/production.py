"""A real repository of the production profile whose passwords are canaries: Postgres for all of it, and Redis."""

from __future__ import annotations

import logging
import subprocess
import traceback
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa
import yaml
from click.testing import CliRunner
from feast.cli.cli import cli as feast_command

from recsys_llm import schema
from recsys_llm.commands.repository import init_repository
from recsys_llm.retrieval import FeatureClient
from recsys_llm.retrieval.blocks import FeatureBatch
from recsys_llm.timestamps import now
from tests.command_line import run_main
from tests.security import canary
from tests.security.canary import hits
from tests.services import redis_server
from tests.workspace import CHEAP_VIEWS, own_modules

PROFILE = "feature_store.prod.yaml"
ITEMS = ["i00001", "i00002"]


@dataclass(frozen=True)
class Production:
    """A repository of the production profile, materialised; its addresses are in the environment."""

    repository: Path
    database: sa.URL
    address: str

    def feast(self, *arguments: str) -> tuple[BaseException | None, str]:
        """Run Feast's own command in this process, at log level DEBUG; return its error and all that it said."""
        levels = {name: logging.getLogger(name).level for name in logging.root.manager.loggerDict}
        with own_modules(self.repository):
            profile = ["-c", str(self.repository), "--log-level", "debug", "-f", str(self.repository / PROFILE)]
            done = CliRunner().invoke(feast_command, [*profile, *arguments])
        for name, before in levels.items():
            logging.getLogger(name).setLevel(before)
        return done.exception, done.output + ("" if done.exception is None else told(done.exception))

    def materialize(self) -> list[str]:
        """Return the arguments of ``feast materialize`` for all time."""
        views = [part for view in CHEAP_VIEWS for part in ("-v", view)]
        return ["materialize", "1960-01-01T00:00:00", f"{now():%Y-%m-%dT%H:%M:%S}", *views]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run ``recsys-llm`` with the production file."""
        return run_main(*arguments, "-C", str(self.repository), "-f", PROFILE)

    def lookup(self, **options: Any) -> FeatureBatch:
        """Look something up."""
        with FeatureClient(self.repository, config_file=PROFILE) as client:
            return client.lookup("u00001", ITEMS, service=schema.RANKER_BASELINE, **options)


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


@contextmanager
def production_repository(folder: Path, data: Path, postgres_url: str) -> Iterator[Production]:
    """Make a role, a database, a Redis and a repository, apply and materialise it, and remove all but the last.

    ``data`` is a folder of tables, which become those of the warehouse.
    """
    name = f"secrets_{uuid.uuid4().hex[:8]}"
    admin = sa.create_engine(postgres_url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        role = f"create role {name} login password '{canary.POSTGRES}'"
        connection.execute(sa.text(role.replace(":", r"\:")))
        connection.execute(sa.text(f"create database {name} owner {name}"))
    url = sa.make_url(postgres_url).set(database=name, username=name, password=canary.POSTGRES)
    repository = init_repository(folder / "feature_repo", data=data)
    profile = yaml.safe_load((repository / PROFILE).read_text())
    profile["batch_engine"]["executor"] = "local"
    profile["online_store"]["timeout_ms"] = 2_000
    (repository / PROFILE).write_text(yaml.safe_dump(profile))
    settings = yaml.safe_load((repository / "recsys_llm.yaml").read_text())
    warehouse = sa.create_engine(url, poolclass=sa.NullPool)
    for table in ("items", "interactions"):
        pq.read_table(data / f"{table}.parquet").to_pandas().to_sql(table, warehouse, index=False)
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
            for arguments in (["apply"], made.materialize()):
                error, said = made.feast(*arguments)
                assert error is None, said
                assert hits(arguments[0], said) == []
            yield made
    finally:
        patch.undo()
        for engine in engines:
            engine.dispose()
        with admin.connect() as connection:
            connection.execute(sa.text(f"drop database {name} with (force)"))
            connection.execute(sa.text(f"drop role {name}"))
        admin.dispose()
