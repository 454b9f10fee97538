"""The production profile as shipped: Postgres warehouse, registry and ledger, Ray, Redis with a password, lookup."""

from __future__ import annotations

import uuid
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa
import yaml

pytest.importorskip("ray", reason="the extra `ray` is not installed")

from recsys_llm import schema
from recsys_llm.commands.feast_cli import run_feast
from recsys_llm.commands.repository import init_repository
from recsys_llm.retrieval import FeatureClient, Status
from recsys_llm.timestamps import now
from tests.services import redis_server
from tests.workspace import CHEAP_VIEWS, make_repository, materialize, offline

PASSWORD = "canary-91c2"


@pytest.fixture
def database(postgres_url):
    """A database of this test's own: its registry, warehouse and ledger."""
    name = f"production_{uuid.uuid4().hex[:8]}"
    admin = sa.create_engine(postgres_url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(sa.text(f"create database {name}"))
    yield sa.make_url(postgres_url).set(database=name).render_as_string(hide_password=False)
    with admin.connect() as connection:
        connection.execute(sa.text(f"drop database {name} with (force)"))
    admin.dispose()


def fill_warehouse(url: str, data: Path) -> None:
    engine = sa.create_engine(url)
    for name in ("items", "interactions"):
        pq.read_table(data / f"{name}.parquet").to_pandas().to_sql(name, engine, index=False)
    engine.dispose()


def use_warehouse(repository: Path) -> None:
    """Read the tables from the warehouse instead, and keep the ledger beside it."""
    file = repository / "recsys_llm.yaml"
    settings = yaml.safe_load(file.read_text())
    for name in ("items", "interactions"):
        del settings["sources"][name]["parquet"]
        settings["sources"][name] |= {"sql": "${WAREHOUSE_URL}", "query": f"select * from {name}"}
    settings["ledger"] = "${WAREHOUSE_URL}"
    file.write_text(yaml.safe_dump(settings) + "chunk_rows: 128\n")


def test_from_warehouse_to_lookup(tmp_path, simulated_data, database, monkeypatch):
    end = now()
    plain = make_repository(tmp_path / "plain", simulated_data)
    materialize(plain, *CHEAP_VIEWS, end=end)
    fill_warehouse(database, simulated_data)
    repository = init_repository(tmp_path / "feature_repo", data=simulated_data)
    use_warehouse(repository)
    with redis_server(password=PASSWORD) as server:
        monkeypatch.setenv("WAREHOUSE_URL", database)
        monkeypatch.setenv("REGISTRY_URL", database)
        monkeypatch.setenv("REDIS_ADDRESS", f"127.0.0.1:{server.port}")
        monkeypatch.setenv("REDIS_PASSWORD", PASSWORD)
        monkeypatch.setenv("RAY_TMPDIR", "/tmp")
        profile = str(repository / "feature_store.prod.yaml")
        printed = run_feast(repository, "-f", profile, "apply")
        views = [part for view in CHEAP_VIEWS for part in ("-v", view)]
        printed += run_feast(
            repository, "-f", profile, "materialize", "1960-01-01T00:00:00", end.strftime("%Y-%m-%dT%H:%M:%S"), *views
        )
        assert not [line for line in printed if PASSWORD in line]
        for view in CHEAP_VIEWS:
            expected, found = offline(plain, view), offline(repository, view)
            assert found.map(repr).values.tolist() == expected.map(repr).values.tolist()
        rows = offline(repository, schema.ITEM_STATS).groupby(schema.ITEM_ID).tail(1)
        items = rows[schema.ITEM_ID].tolist()
        with FeatureClient(repository, config_file="feature_store.prod.yaml") as client:
            batch = client.lookup("nobody", items, service=schema.RANKER_BASELINE)
            column = schema.feature_column(schema.ITEM_STATS, schema.N_EVENTS)
            assert batch.scalar(column).tolist() == rows[schema.N_EVENTS].tolist()
            assert set(batch.status(schema.USER_STATS)) == {Status.MISSING}
            for engine in (client.store.registry.read_engine, client.store.registry.write_engine):
                engine.dispose()
