"""Hostile registry rows: refused before Feast loads them; a canary file never appears."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from feast import FeatureStore
from feast.feature_service import FeatureService
from feast.feature_view import FeatureView
from feast.infra.registry.sql import metadata
from feast.protos.feast.core.FeatureView_pb2 import FeatureView as FeatureViewProto
from feast.protos.feast.core.Registry_pb2 import Registry as RegistryProto
from feast.protos.feast.core.SavedDataset_pb2 import SavedDataset as SavedDatasetProto
from feast.saved_dataset import CUSTOM_STORAGE_CLASS_KEY, SavedDataset

from recsys_llm import schema
from recsys_llm.commands.feast_cli import FeastCommandError, run_feast
from recsys_llm.errors import UnsafeRegistryError
from recsys_llm.registry_guard import check_kind
from recsys_llm.registry_rows import REFUSED, TEXT, messages, problems_in
from recsys_llm.retrieval import FeatureClient, open_store
from tests.retrieval.feast_repository import online_config
from tests.security.hostile_rows import (
    EVIL_MODULE,
    KINDS,
    PROJECT,
    dataset_with_class,
    service_with_class,
    spoil,
    view_named,
    view_with_function,
)
from tests.workspace import make_repository

pytestmark = pytest.mark.security


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


@pytest.mark.parametrize("kind", KINDS)
def test_a_hostile_row_is_refused_unread(repository, canary, kind):
    spoil(repository, canary, kind)
    with pytest.raises(UnsafeRegistryError, match="hostile.*it was not loaded"):
        open_store(repository).list_feature_views()
    with pytest.raises(UnsafeRegistryError), FeatureClient(repository) as client:
        client.resolve(schema.RANKER)
    assert not canary.exists()


@pytest.mark.parametrize("kind", ["function", "on_demand_feature_views", "source_class", "service_class"])
def test_a_row_that_comes_later_is_refused_too(repository, canary, kind):
    store = open_store(repository)
    assert store.list_feature_views()
    spoil(repository, canary, kind)
    for read in (
        lambda: (store.refresh_registry(), store.list_feature_views()),
        lambda: store.registry.list_feature_views(PROJECT, allow_cache=False),
        lambda: store.registry.get_feature_view("hostile", PROJECT, allow_cache=False),
        lambda: store.registry.list_data_sources(PROJECT, allow_cache=False),
        lambda: store.registry.list_feature_services(PROJECT, allow_cache=False),
        lambda: store.registry.get_feature_service("hostile", PROJECT, allow_cache=False),
        lambda: store.registry.list_saved_datasets(PROJECT, allow_cache=False),
        lambda: store.registry.get_feature_view_by_version("hostile", PROJECT, 1),
    ):
        with pytest.raises(UnsafeRegistryError):
            read()
    assert not canary.exists()


def test_the_feast_command_refuses_before_it_lists(repository, canary):
    spoil(repository, canary, "function")
    with pytest.raises(FeastCommandError, match="UnsafeRegistryError.*hostile"):
        run_feast(repository, "materialize", "2020-01-01T00:00:00", "2020-01-02T00:00:00")
    assert not canary.exists()


@pytest.mark.parametrize(
    "load",
    [
        lambda view: FeatureView.from_proto(view).feature_transformation.udf(1),
        lambda view: FeatureService.from_proto(service_with_class()),
        lambda view: SavedDataset.from_proto(dataset_with_class()),
    ],
    ids=["function", "service_class", "dataset_class"],
)
def test_the_payloads_are_live(repository, canary, load):
    """Without the guard the canary appears: what is refused above would have run."""
    sys.modules.pop(EVIL_MODULE, None)
    with contextlib.suppress(Exception):  # whatever Feast makes of what the payload returned
        load(view_with_function(repository, canary))
    assert canary.exists()


@pytest.mark.parametrize("registry", ["data/plain.db", {"registry_type": "file", "path": "data/plain.db"}])
def test_a_registry_that_is_a_file_is_not_opened(repository, canary, registry, tmp_path):
    """Feast would read a view's function from it without asking anybody."""
    settings = yaml.safe_load((repository / "feature_store.yaml").read_text()) | {"registry": registry}
    (tmp_path / "plain.yaml").write_text(yaml.safe_dump(settings))
    hostile = RegistryProto(registry_schema_version="1")
    hostile.feature_views.append(view_with_function(repository, canary))
    (repository / "data" / "plain.db").write_bytes(hostile.SerializeToString())
    with pytest.raises(UnsafeRegistryError, match="expected registry_type: sql, found 'file'.*not loaded"):
        open_store(repository, config_file=str(tmp_path / "plain.yaml"))
    opened = FeatureStore(repo_path=str(repository), fs_yaml_file=tmp_path / "plain.yaml")
    with pytest.raises(UnsafeRegistryError):
        opened.list_feature_views()
    with pytest.raises(UnsafeRegistryError):
        FeatureClient(store=opened)
    with pytest.raises(FeastCommandError, match="UnsafeRegistryError.*registry_type: sql"):
        run_feast(repository, "-f", str(tmp_path / "plain.yaml"), "feature-views", "list")
    assert not canary.exists()


@pytest.mark.parametrize("kind", ["snowflake.registry", "remote", "s3"])
def test_no_other_kind_is_opened(kind):
    class Config:
        registry_type = kind

    with pytest.raises(UnsafeRegistryError, match="expected registry_type: sql"):
        check_kind(Config)


def test_each_table_of_feast_is_read_or_known_to_be_safe():
    """A table that a new Feast adds has to be decided about."""
    assert {*messages(), *REFUSED, *TEXT} == set(metadata.tables)
    assert not messages().keys() & REFUSED.keys() and not (messages().keys() | REFUSED.keys()) & TEXT.keys()
    for name, (key, content, _) in messages().items():
        assert {key, content} <= set(metadata.tables[name].columns.keys())
        read = [column for column in metadata.tables[name].columns.keys() if column.endswith("_proto")]
        assert read == [content]
    for name, (key, _) in REFUSED.items():
        assert key in metadata.tables[name].columns


@pytest.mark.parametrize("name", ["item_stats", "Driver-Hourly.v2", "__dummy", "x9"])
def test_names_that_people_use_pass(repository, name):
    view = view_named(repository, "untagged path")
    view.spec.name = name
    view.spec.batch_source.field_mapping["Order Date"] = "order_date"
    assert list(problems_in(FeatureViewProto, view.SerializeToString())) == []


def test_saved_datasets_of_feasts_own_storages_pass():
    dataset = SavedDatasetProto()
    dataset.spec.name = "ours"
    dataset.spec.storage.file_storage.uri = "/data/set.parquet"
    assert list(problems_in(SavedDatasetProto, dataset.SerializeToString())) == []
    named = {CUSTOM_STORAGE_CLASS_KEY: "feast.infra.offline_stores.contrib.postgres_offline_store.X"}
    dataset.spec.storage.custom_storage.configuration = json.dumps(named).encode()
    assert list(problems_in(SavedDatasetProto, dataset.SerializeToString())) == []
    dataset.spec.storage.custom_storage.configuration = b"[" * 100_000
    assert any("nested" in problem for problem in problems_in(SavedDatasetProto, dataset.SerializeToString()))


def test_a_registry_of_our_own_passes(repository):
    names = {view.name for view in open_store(repository).list_feature_views()}
    assert {schema.ITEM_STATS, schema.USER_STATS} <= names
    assert online_config("sqlite", repository)["type"] == "sqlite"
