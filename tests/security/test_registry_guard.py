"""Hostile registry rows: refused before Feast loads them; a canary file never appears."""

from __future__ import annotations

import os
import pickle
import shutil
import sqlite3
from pathlib import Path

import pytest
from feast.feature_view import FeatureView
from feast.protos.feast.core.DataSource_pb2 import DataSource as DataSourceProto
from feast.protos.feast.core.FeatureView_pb2 import FeatureView as FeatureViewProto
from feast.protos.feast.core.InfraObject_pb2 import Infra as InfraProto

from recsys_llm import schema
from recsys_llm.commands.feast_cli import FeastCommandError, run_feast
from recsys_llm.errors import UnsafeRegistryError
from recsys_llm.retrieval import FeatureClient, open_store
from tests.retrieval.feast_repository import online_config
from tests.workspace import make_repository

pytestmark = pytest.mark.security

PROJECT = "recsys"
EVIL_MODULE = "recsys_llm_test_evil_module"


class _Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (str(self.canary),)


@pytest.fixture(scope="module")
def applied(tmp_path_factory, simulated_data) -> Path:
    return make_repository(tmp_path_factory.mktemp("guard") / "feature_repo", simulated_data)


@pytest.fixture
def repository(applied, tmp_path):
    """A repository with a registry that may be spoilt; it is restored afterwards."""
    file = applied / "data" / "registry.db"
    shutil.copy(file, tmp_path / "registry.db")
    yield applied
    shutil.copy(tmp_path / "registry.db", file)


@pytest.fixture
def canary(tmp_path, monkeypatch) -> Path:
    """What a payload would make, and a module that makes it when it is imported."""
    canary = tmp_path / "canary"
    (tmp_path / f"{EVIL_MODULE}.py").write_text(f"import os\nos.mkdir({str(canary)!r})\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    return canary


def insert(repository: Path, table: str, **values) -> None:
    columns = {"project_id": PROJECT, "last_updated_timestamp": 1, **values}
    if table == "feature_view_version_history":
        del columns["last_updated_timestamp"]
        columns |= {"created_timestamp": 1, "version_id": "x"}
    connection = sqlite3.connect(repository / "data" / "registry.db")
    with connection:
        marks = ", ".join("?" * len(columns))
        connection.execute(f"insert into {table} ({', '.join(columns)}) values ({marks})", list(columns.values()))
    connection.close()


def stored(repository: Path, table: str, column: str, where: str, value: str) -> bytes:
    connection = sqlite3.connect(repository / "data" / "registry.db")
    (found,) = connection.execute(f"select {column} from {table} where {where} = ?", [value]).fetchone()
    connection.close()
    return bytes(found)


def view_with_function(repository: Path, canary: Path) -> FeatureViewProto:
    raw = stored(repository, "feature_views", "feature_view_proto", "feature_view_name", schema.ITEM_STATS)
    proto = FeatureViewProto.FromString(raw)
    proto.spec.name = "hostile"
    function = proto.spec.feature_transformation.user_defined_function
    function.name, function.body, function.mode = "f", pickle.dumps(_Payload(canary)), "python"
    return proto


def spoil(repository: Path, canary: Path, kind: str) -> None:
    function = view_with_function(repository, canary)
    if kind in ("on_demand_feature_views", "stream_feature_views", "label_views"):
        insert(repository, kind, feature_view_name="hostile", feature_view_proto=function.SerializeToString())
    elif kind == "validation_references":
        insert(repository, kind, validation_reference_name="hostile", validation_reference_proto=b"")
    elif kind == "function":
        insert(
            repository, "feature_views", feature_view_name="hostile", feature_view_proto=function.SerializeToString()
        )
    elif kind in ("version", "version_function"):
        insert(
            repository,
            "feature_view_version_history",
            feature_view_name="hostile",
            version_number=1,
            feature_view_type="on_demand_feature_view" if kind == "version" else "feature_view",
            feature_view_proto=function.SerializeToString(),
        )
    elif kind == "source_class":
        source = DataSourceProto(name="hostile", type=DataSourceProto.CUSTOM_SOURCE)
        source.data_source_class_type = f"{EVIL_MODULE}.Source"
        insert(repository, "data_sources", data_source_name="hostile", data_source_proto=source.SerializeToString())
    elif kind == "view_source_class":
        view = view_with_function(repository, canary)
        view.spec.ClearField("feature_transformation")
        view.spec.batch_source.data_source_class_type = f"{EVIL_MODULE}.Source"
        insert(repository, "feature_views", feature_view_name="hostile", feature_view_proto=view.SerializeToString())
    elif kind == "infra":
        infra = InfraProto()
        infra.infra_objects.add().infra_object_class_type = f"{EVIL_MODULE}.Infra"
        insert(repository, "managed_infra", infra_name="hostile", infra_proto=infra.SerializeToString())
    elif kind == "garbage":
        insert(repository, "feature_views", feature_view_name="hostile", feature_view_proto=b"\xff\xff\xff")
    elif kind == "name":
        view = view_with_function(repository, canary)
        view.spec.ClearField("feature_transformation")
        view.spec.name = "x; drop table users"
        insert(repository, "feature_views", feature_view_name="hostile", feature_view_proto=view.SerializeToString())


KINDS = (
    "on_demand_feature_views",
    "stream_feature_views",
    "label_views",
    "validation_references",
    "function",
    "version",
    "version_function",
    "source_class",
    "view_source_class",
    "infra",
    "garbage",
    "name",
)


@pytest.mark.parametrize("kind", KINDS)
def test_a_hostile_row_is_refused_unread(repository, canary, kind):
    spoil(repository, canary, kind)
    with pytest.raises(UnsafeRegistryError, match="hostile.*it was not loaded"):
        open_store(repository).list_feature_views()
    with pytest.raises(UnsafeRegistryError), FeatureClient(repository) as client:
        client.resolve(schema.RANKER)
    assert not canary.exists()


@pytest.mark.parametrize("kind", ["function", "on_demand_feature_views", "source_class"])
def test_a_row_that_comes_later_is_refused_too(repository, canary, kind):
    store = open_store(repository)
    assert store.list_feature_views()
    spoil(repository, canary, kind)
    for read in (
        lambda: (store.refresh_registry(), store.list_feature_views()),
        lambda: store.registry.list_feature_views(PROJECT, allow_cache=False),
        lambda: store.registry.get_feature_view("hostile", PROJECT, allow_cache=False),
        lambda: store.registry.list_data_sources(PROJECT, allow_cache=False),
    ):
        with pytest.raises(UnsafeRegistryError):
            read()
    assert not canary.exists()


def test_the_feast_command_refuses_before_it_lists(repository, canary):
    spoil(repository, canary, "function")
    with pytest.raises(FeastCommandError, match="UnsafeRegistryError.*hostile"):
        run_feast(repository, "materialize", "2020-01-01T00:00:00", "2020-01-02T00:00:00")
    assert not canary.exists()


def test_the_payloads_are_live(repository, canary):
    """Without the guard the canary appears: what is refused above would have run."""
    with pytest.raises(Exception):  # noqa: B017  whatever Feast makes of what the payload returned
        FeatureView.from_proto(view_with_function(repository, canary)).feature_transformation.udf(1)
    assert canary.exists()


def test_a_registry_of_our_own_passes(repository):
    names = {view.name for view in open_store(repository).list_feature_views()}
    assert {schema.ITEM_STATS, schema.USER_STATS} <= names
    assert online_config("sqlite", repository)["type"] == "sqlite"
