"""What in a registry row would run, import or write something, found in its protobuf without loading it.

Parsing protobuf runs nothing. What Feast makes of the message afterwards may: functions are stored as pickles, classes
by their import path, and names end up in SQL statements and file names, of Feast and of ours.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from recsys_llm.schema import NAME_PATTERN, TAG

REFUSED: Mapping[str, tuple[str, str]] = {
    "on_demand_feature_views": ("feature_view_name", "an on-demand view, whose function would run"),
    "stream_feature_views": ("feature_view_name", "a stream view, whose function would run"),
    "label_views": ("feature_view_name", "a label view"),
    "validation_references": ("validation_reference_name", "a validation reference, whose profiler would run"),
}
"""Table to its column of names, and what its rows are: none of them is accepted."""
TEXT: Mapping[str, str] = {"feast_metadata": "holds ids and times as text; Feast parses numbers of them and no more"}
"""Table to the reason why its rows need no check."""
OWN = "feast."
"""Start of the import paths of Feast's own classes."""
LONGEST = 128

_FUNCTIONS = {"UserDefinedFunction", "UserDefinedFunctionV2", "SubstraitTransformationV2", "FeatureTransformationV2"}
_NAME = re.compile(r"[A-Za-z0-9_]+([.-][A-Za-z0-9_]+)*")
_COLUMN = re.compile(r"[A-Za-z0-9_]+([ .-][A-Za-z0-9_]+)*")
"""A column of somebody's warehouse may have a space in its name: no quote, bracket, semicolon or comment fits in."""
_NAMES: Mapping[str, tuple[re.Pattern[str], tuple[str, ...]]] = {
    "FeatureViewSpec": (_NAME, ("name", "entities")),
    "FeatureViewProjection": (_NAME, ("feature_view_name", "feature_view_name_alias")),
    "FeatureServiceSpec": (_NAME, ("name",)),
    "EntitySpecV2": (_NAME, ("name",)),
    "ProjectSpec": (_NAME, ("name",)),
    "SavedDatasetSpec": (_NAME, ("name",)),
    "SqliteTable": (_NAME, ("name",)),
}
"""Message to the fields that are names of things; what stands in SQL or in a file name has no other characters."""
_COLUMNS: Mapping[str, tuple[re.Pattern[str], tuple[str, ...]]] = {
    "FeatureSpecV2": (_COLUMN, ("name",)),
    "EntitySpecV2": (_COLUMN, ("join_key",)),
    "SavedDatasetSpec": (_COLUMN, ("join_keys",)),
    "FeatureViewProjection": (
        _COLUMN,
        ("join_key_map", "timestamp_field", "date_partition_column", "created_timestamp_column"),
    ),
    "DataSource": (
        _COLUMN,
        ("field_mapping", "timestamp_field", "date_partition_column", "created_timestamp_column"),
    ),
}
"""Message to the fields that are columns."""
_STORAGE_CLASS = "saved_dataset_storage_class"
"""Feast's ``CUSTOM_STORAGE_CLASS_KEY``: the import path of a class, in the JSON of a saved dataset's storage."""


def messages() -> dict[str, tuple[str, str, Any]]:
    """Return table to its columns of names and contents, and to the message that the contents are."""
    from feast.protos.feast.core.DataSource_pb2 import DataSource
    from feast.protos.feast.core.Entity_pb2 import Entity
    from feast.protos.feast.core.FeatureService_pb2 import FeatureService
    from feast.protos.feast.core.FeatureView_pb2 import FeatureView
    from feast.protos.feast.core.InfraObject_pb2 import Infra
    from feast.protos.feast.core.Permission_pb2 import Permission
    from feast.protos.feast.core.Project_pb2 import Project
    from feast.protos.feast.core.SavedDataset_pb2 import SavedDataset

    return {
        "projects": ("project_name", "project_proto", Project),
        "entities": ("entity_name", "entity_proto", Entity),
        "data_sources": ("data_source_name", "data_source_proto", DataSource),
        "feature_views": ("feature_view_name", "feature_view_proto", FeatureView),
        "feature_view_version_history": ("feature_view_name", "feature_view_proto", FeatureView),
        "feature_services": ("feature_service_name", "feature_service_proto", FeatureService),
        "saved_datasets": ("saved_dataset_name", "saved_dataset_proto", SavedDataset),
        "managed_infra": ("infra_name", "infra_proto", Infra),
        "permissions": ("permission_name", "permission_proto", Permission),
    }


def problems_in(message: Any, raw: bytes) -> Iterator[str]:
    """Yield what in a row is dangerous; ``message`` is the class of its content."""
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        parsed = message.FromString(raw)
    except DecodeError:
        yield "is no protobuf message of its kind"
        return
    yield from _in_message(parsed)


def _in_message(message: Any) -> Iterator[str]:
    kind = message.DESCRIPTOR.name
    if kind in _FUNCTIONS:
        yield f"holds a function ({kind})"
        return
    if kind == "SavedDatasetStorage" and message.HasField("custom_storage"):
        yield from _in_storage(message.custom_storage.configuration)
    for table in (_NAMES, _COLUMNS):
        if kind in table:
            pattern, fields = table[kind]
            yield from _in_names([name for field in fields for name in _texts(getattr(message, field))], pattern)
    if kind == "FeatureViewSpec" and TAG in message.tags:
        columns = (feature.name for feature in (*message.entity_columns, *message.features))
        yield from _in_names([message.name, *message.entities, *columns], NAME_PATTERN)
    for field, value in message.ListFields():
        if field.name.endswith("_class_type") and value and not str(value).startswith(OWN):
            yield f"names the class {value!r}, which would be imported"
        for part in _parts(field, value):
            yield from _in_message(part)


def _in_storage(configuration: bytes) -> Iterator[str]:
    """Yield the class of a saved dataset's storage, unless it is Feast's; read as Feast reads it."""
    try:
        content = json.loads(configuration.decode("utf8"))
    except RecursionError:
        yield "holds JSON that is nested too deeply"
        return
    except ValueError:  # Feast takes it for a storage of before it recorded classes
        return
    name = content.get(_STORAGE_CLASS) if isinstance(content, dict) else None
    if isinstance(name, str) and name and not name.startswith(OWN):
        yield f"names the class {name!r}, which would be imported"


def _in_names(names: list[str], pattern: re.Pattern[str]) -> Iterator[str]:
    for name in names:
        if name and (pattern.fullmatch(name) is None or len(name) > LONGEST):
            yield f"name {name!r} does not match {pattern.pattern}, of {LONGEST} characters at most"


def _texts(value: Any) -> list[str]:
    """Return the texts of a field: one, a list, or a map's keys and values."""
    if isinstance(value, str):
        return [value]
    return [*value.keys(), *value.values()] if hasattr(value, "keys") else list(value)


def _parts(field: Any, value: Any) -> list[Any]:
    """Return the messages that a field holds."""
    if field.message_type is None:
        return []
    if field.message_type.GetOptions().map_entry:
        held = field.message_type.fields_by_name["value"].message_type
        return [] if held is None else list(value.values())
    return [value] if hasattr(value, "DESCRIPTOR") else list(value)
