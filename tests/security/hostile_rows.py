"""Registry rows that would run code or whose names would end up in SQL or outside, written past Feast."""

from __future__ import annotations

import json
import os
import pickle
import sqlite3
from pathlib import Path

from feast.protos.feast.core.DataSource_pb2 import DataSource as DataSourceProto
from feast.protos.feast.core.Entity_pb2 import Entity as EntityProto
from feast.protos.feast.core.FeatureService_pb2 import FeatureService as FeatureServiceProto
from feast.protos.feast.core.FeatureView_pb2 import FeatureView as FeatureViewProto
from feast.protos.feast.core.InfraObject_pb2 import Infra as InfraProto
from feast.protos.feast.core.SavedDataset_pb2 import SavedDataset as SavedDatasetProto
from feast.saved_dataset import CUSTOM_STORAGE_CLASS_KEY

from recsys_llm import schema

PROJECT = "recsys"
EVIL_MODULE = "recsys_llm_test_evil_module"


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (str(self.canary),)


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


def replace(repository: Path, table: str, column: str, where: str, value: str, content: bytes) -> None:
    connection = sqlite3.connect(repository / "data" / "registry.db")
    with connection:
        changed = connection.execute(f"update {table} set {column} = ? where {where} = ?", [content, value]).rowcount
    connection.close()
    assert changed == 1


def view_with_function(repository: Path, canary: Path) -> FeatureViewProto:
    raw = stored(repository, "feature_views", "feature_view_proto", "feature_view_name", schema.ITEM_STATS)
    proto = FeatureViewProto.FromString(raw)
    proto.spec.name = "hostile"
    function = proto.spec.feature_transformation.user_defined_function
    function.name, function.body, function.mode = "f", pickle.dumps(Payload(canary)), "python"
    return proto


def view_named(repository: Path, kind: str) -> FeatureViewProto:
    """A view of ours or of somebody else with one hostile name, ``kind`` says where."""
    raw = stored(repository, "feature_views", "feature_view_proto", "feature_view_name", schema.USER_STATS)
    view = FeatureViewProto.FromString(raw)
    view.spec.name = "hostile"
    if kind.startswith("untagged"):
        del view.spec.tags[schema.TAG]
    name = NAMES[kind]
    if kind.endswith("column"):
        view.spec.entity_columns[0].name = name
    elif kind.endswith("entity"):
        view.spec.entities[0] = name
    elif kind.endswith("feature"):
        view.spec.features[0].name = name
    elif kind.endswith("timestamp"):
        view.spec.batch_source.timestamp_field = name
    elif kind.endswith("mapping"):
        view.spec.batch_source.field_mapping["x"] = name
    else:
        view.spec.name = name
    return view


def service_with_class() -> FeatureServiceProto:
    service = FeatureServiceProto()
    service.spec.name = "hostile"
    projection = service.spec.features.add(feature_view_name="item_stats")
    projection.batch_source.type = DataSourceProto.CUSTOM_SOURCE
    projection.batch_source.data_source_class_type = f"{EVIL_MODULE}.Source"
    return service


def dataset_with_class() -> SavedDatasetProto:
    dataset = SavedDatasetProto()
    dataset.spec.name = "hostile"
    named = {CUSTOM_STORAGE_CLASS_KEY: f"{EVIL_MODULE}.Storage"}
    dataset.spec.storage.custom_storage.configuration = json.dumps(named).encode()
    return dataset


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
    elif kind == "service_class":
        raw = service_with_class().SerializeToString()
        insert(repository, "feature_services", feature_service_name="hostile", feature_service_proto=raw)
    elif kind == "service_name":
        service = FeatureServiceProto()
        service.spec.name = "../../hostile"
        raw = service.SerializeToString()
        insert(repository, "feature_services", feature_service_name="hostile", feature_service_proto=raw)
    elif kind == "dataset_class":
        raw = dataset_with_class().SerializeToString()
        insert(repository, "saved_datasets", saved_dataset_name="hostile", saved_dataset_proto=raw)
    elif kind == "entity_key":
        entity = EntityProto()
        entity.spec.name, entity.spec.join_key = "hostile", "x) FROM t; COPY t TO 'x'"
        insert(repository, "entities", entity_name="hostile", entity_proto=entity.SerializeToString())
    elif kind in NAMES:
        raw = view_named(repository, kind).SerializeToString()
        insert(repository, "feature_views", feature_view_name="hostile", feature_view_proto=raw)
    else:
        raise KeyError(kind)


INJECTION = "1) SELECT 1; COPY (SELECT 1) TO '/tmp/x'; WITH old AS (SELECT user_id"
NAMES = {
    "name": "x; drop table users",
    "column": INJECTION,
    "entity": "user'",
    "feature": 'n_events") FROM t --',
    "line break": "evil\n",
    "timestamp": INJECTION,
    "mapping": 'x" FROM t --',
    "untagged path": "../../evil",
    "untagged quote": 'x"; drop table',
    "untagged comment": "x--y",
    "untagged line break": "evil\n",
    "untagged column": INJECTION,
    "untagged feature": "x); COPY t TO 'x",
    "untagged entity": "a b; c",
    "untagged long": "x" * 200,
}
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
    "service_class",
    "service_name",
    "dataset_class",
    "entity_key",
    *NAMES,
)
