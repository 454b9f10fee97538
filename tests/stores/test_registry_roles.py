"""Serving with a Postgres role that may only read the registry; what its tables lack is named, and not made."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import sqlalchemy as sa
import yaml

from recsys_llm import schema
from recsys_llm.commands.feast_cli import FeastCommandError
from recsys_llm.commands.repository import init_repository
from recsys_llm.errors import RegistryError
from recsys_llm.retrieval import FeatureClient, Status, open_store
from recsys_llm.timestamps import now
from tests.workspace import CHEAP_VIEWS, feast, materialize, offline

pytestmark = pytest.mark.security

SERVING = "serving.yaml"


@dataclass(frozen=True)
class Place:
    """A materialised repository, its registry's owner, and a role that may only read."""

    repository: Path
    owner: sa.Engine
    reader: sa.URL

    def write(self, **registry: str) -> None:
        """Write the settings of a process that serves."""
        settings = yaml.safe_load((self.repository / "feature_store.yaml").read_text())
        url = self.reader.render_as_string(hide_password=False)
        settings["registry"] = {"registry_type": "sql", "path": url, "schema_mode": "verify"} | registry
        (self.repository / SERVING).write_text(yaml.safe_dump(settings))

    def contents(self) -> dict[str, list[str]]:
        """Return all rows of the registry, by table."""
        with self.owner.connect() as connection:
            names = sorted(sa.inspect(connection).get_table_names())
            return {name: sorted(map(repr, connection.execute(sa.text(f"select * from {name}")))) for name in names}


@pytest.fixture(scope="module")
def made(tmp_path_factory, simulated_data, postgres_url) -> Iterator[Place]:
    name = f"roles_{uuid.uuid4().hex[:8]}"
    reader = sa.make_url(postgres_url).set(database=name, username=f"reader_{name}", password="canary-47d1")
    admin = sa.create_engine(postgres_url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(sa.text(f"create database {name}"))
        connection.execute(sa.text(f"create role reader_{name} login password 'canary-47d1'"))
    url = sa.make_url(postgres_url).set(database=name)
    owner = sa.create_engine(url, poolclass=sa.NullPool, isolation_level="AUTOCOMMIT")
    repository = init_repository(tmp_path_factory.mktemp("roles") / "feature_repo", data=simulated_data)
    file = repository / "feature_store.yaml"
    settings = yaml.safe_load(file.read_text())
    path = url.render_as_string(hide_password=False)
    settings["registry"] = {"registry_type": "sql", "path": path}
    file.write_text(yaml.safe_dump(settings))
    patch = pytest.MonkeyPatch()
    # Feast never closes the connections of its registries' pools.
    patch.setattr("feast.infra.registry.sql.create_engine", partial(sa.create_engine, poolclass=sa.NullPool))
    try:
        feast(repository, "apply")
        materialize(repository, *CHEAP_VIEWS, end=now())
        with owner.connect() as connection:
            connection.execute(sa.text(f"grant select on all tables in schema public to reader_{name}"))
        yield Place(repository, owner, reader)
    finally:
        patch.undo()
        with admin.connect() as connection:
            connection.execute(sa.text(f"drop database {name} with (force)"))
            connection.execute(sa.text(f"drop role reader_{name}"))
        admin.dispose()


@pytest.fixture
def place(made) -> Place:
    made.write()
    return made


def without(place: Place, change: str, restore: str) -> str:
    """Return why the registry is refused after a change, which is undone, and made neither by us nor by Feast."""
    with place.owner.connect() as connection:
        connection.execute(sa.text(change))
        try:
            before = place.contents()
            with pytest.raises(RegistryError) as refused:
                open_store(place.repository, config_file=SERVING).list_feature_views()
            assert place.contents() == before
        finally:
            connection.execute(sa.text(restore))
    return str(refused.value)


def test_a_role_that_may_only_read_serves_and_trains(place):
    before = place.contents()
    rows = offline(place.repository, schema.ITEM_STATS).groupby(schema.ITEM_ID).tail(1)
    items = rows[schema.ITEM_ID].tolist()
    with FeatureClient(place.repository, config_file=SERVING) as client:
        batch = client.lookup("nobody", items, service=schema.RANKER_BASELINE)
        column = schema.feature_column(schema.ITEM_STATS, schema.N_EVENTS)
        assert batch.scalar(column).tolist() == rows[schema.N_EVENTS].tolist()
        assert set(batch.status(schema.USER_STATS)) == {Status.MISSING}
        examples = rows[[schema.ITEM_ID]].assign(**{schema.USER_ID: "nobody", schema.EVENT_TIMESTAMP: now()})
        trained = client.training_set(examples, service=schema.RANKER_BASELINE)
        assert trained.scalar(column).tolist() == rows[schema.N_EVENTS].tolist()
    assert place.contents() == before


def test_it_can_not_write(place):
    before = place.contents()
    with pytest.raises(FeastCommandError) as refused:
        feast(place.repository, "-f", str(place.repository / SERVING), "teardown")
    assert "permission denied" in repr(refused.value.__cause__)
    assert place.contents() == before


def test_a_missing_table_or_column_is_named_and_not_made(place):
    said = without(place, "alter table permissions rename to kept", "alter table kept rename to permissions")
    assert ": table permissions missing, and schema_mode: verify makes none" in said
    assert "canary-47d1" not in said
    said = without(
        place,
        "alter table feature_views rename column user_metadata to kept",
        "alter table feature_views rename column kept to user_metadata",
    )
    assert ": column feature_views.user_metadata missing" in said


def test_a_project_that_was_never_applied_is_named(place):
    settings = yaml.safe_load((place.repository / SERVING).read_text()) | {"project": "another"}
    (place.repository / SERVING).write_text(yaml.safe_dump(settings))
    with pytest.raises(RegistryError, match="holds no project 'another', and role 'reader_.*' may only read; run"):
        open_store(place.repository, config_file=SERVING).list_feature_views()


def test_an_empty_registry_stays_empty(place, tmp_path):
    place.write(path=f"sqlite:///{tmp_path}/registry.db")
    with pytest.raises(RegistryError, match="table data_sources, table entities, .* missing"):
        open_store(place.repository, config_file=SERVING).list_feature_views()
    assert not sa.inspect(sa.create_engine(f"sqlite:///{tmp_path}/registry.db")).get_table_names()
