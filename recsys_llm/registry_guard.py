"""No registry row that runs code is ever loaded.

Feast stores functions of on-demand, stream and batch views as pickles, and names classes by import path; reading such
a row runs what is in it, so write access to the registry would be code execution wherever it is read. recsys_llm needs
none of them. Here the raw rows of a SQL registry are parsed as protobuf, which runs nothing, before Feast sees them:
when a registry is opened, and whenever rows are read from the database anew.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import sqlalchemy as sa

from recsys_llm.errors import ConfigError, RegistryError, UnsafeRegistryError
from recsys_llm.passwords import database_url, first_line, hide_in_feast, shown_url
from recsys_llm.registry_schema import VERIFY, check_schema
from recsys_llm.schema import NAME_PATTERN, TAG

_REFUSED = {
    "on_demand_feature_views": ("feature_view_name", "an on-demand view, whose function would run"),
    "stream_feature_views": ("feature_view_name", "a stream view, whose function would run"),
    "label_views": ("feature_view_name", "a label view"),
    "validation_references": ("validation_reference_name", "a validation reference, whose profiler would run"),
}
_FUNCTIONS = {"UserDefinedFunction", "UserDefinedFunctionV2", "SubstraitTransformationV2", "FeatureTransformationV2"}
_OWN = "feast."
"""Start of the import paths of Feast's own classes."""
_PLAIN_VIEW = "feature_view"


def check_rows(engine: sa.Engine) -> None:
    """Refuse a SQL registry that holds a row which would run code when it is read.

    Raises
    ------
    UnsafeRegistryError
        There is such a row; the message names it. Nothing of it was loaded.
    """
    for problem in _problems(engine):
        raise UnsafeRegistryError(
            f"registry {shown_url(engine.url)}: {problem}; it was not loaded. Remove the "
            "row, and find out who could write it"
        )


def guard_registries() -> None:
    """Let Feast's SQL registry check its rows before it reads them, in this process, from now on.

    Feast has no place to hang this on: `feast materialize` reads all views before it calls the compute engine. Its
    configuration shows no password of the registry from then on.
    """
    hide_in_feast()
    from feast.infra.registry.sql import SqlRegistry

    if getattr(SqlRegistry, "_recsys_llm_guarded", False):
        return
    SqlRegistry._recsys_llm_guarded = True
    SqlRegistry.__init__ = _checked_first(SqlRegistry.__init__, _when_opened)
    for name in ("proto", "_get_object", "_list_objects"):
        setattr(SqlRegistry, name, _checked_first(getattr(SqlRegistry, name), _when_read))


def _checked_first(method: Callable[..., Any], check: Callable[..., None]) -> Callable[..., Any]:
    @functools.wraps(method)
    def checked(self: Any, *arguments: Any, **options: Any) -> Any:
        check(self, *arguments, **options)
        return method(self, *arguments, **options)

    return checked


def _when_opened(registry: Any, registry_config: Any, project: str, *_arguments: Any, **_options: Any) -> None:
    engine = _engine(registry_config.path)
    if registry_config.read_path is not None:
        database_url(registry_config.read_path, name="registry: read_path")
    try:
        if registry_config.schema_mode == VERIFY:
            check_schema(engine, project)
        check_rows(engine)
    except sa.exc.OperationalError as error:
        where = shown_url(engine.url)
        raise RegistryError(
            f"registry {where}: {first_line(error)}; check that it is up, and 'registry' in feature_store.yaml"
        ) from None
    finally:
        engine.dispose()


def _engine(path: str) -> sa.Engine:
    url = database_url(path, name="registry: path")
    try:
        return sa.create_engine(url, poolclass=sa.NullPool)
    except (sa.exc.NoSuchModuleError, ModuleNotFoundError) as error:
        raise ConfigError(f"registry: {error}; install the driver of this database") from None


def _when_read(registry: Any, *_arguments: Any, **_options: Any) -> None:
    check_rows(registry.read_engine)


def _problems(engine: sa.Engine) -> Iterator[str]:
    """Yield what is wrong, as it is found."""
    from feast.protos.feast.core.DataSource_pb2 import DataSource
    from feast.protos.feast.core.FeatureView_pb2 import FeatureView
    from feast.protos.feast.core.InfraObject_pb2 import Infra

    parsed = {
        "feature_views": ("feature_view_name", "feature_view_proto", FeatureView),
        "data_sources": ("data_source_name", "data_source_proto", DataSource),
        "managed_infra": ("infra_name", "infra_proto", Infra),
        "feature_view_version_history": ("feature_view_name", "feature_view_proto", FeatureView),
    }
    present = set(sa.inspect(engine).get_table_names())
    found: Any
    with engine.connect() as connection:
        for table, (name, what) in _REFUSED.items():
            if table in present:
                for found in connection.scalars(sa.select(sa.column(name)).select_from(sa.table(table)).limit(1)):
                    yield f"table {table} has {found!r}, {what}"
        if "feature_view_version_history" in present:
            kind: Any = sa.column("feature_view_type")
            name_of: Any = sa.column("feature_view_name")
            query = sa.select(name_of, kind).select_from(sa.table("feature_view_version_history"))
            for found, of in connection.execute(query.where(kind != _PLAIN_VIEW).limit(1)):
                yield f"table feature_view_version_history has {found!r}, a version of a {of}"
        for table, (name, content, message) in parsed.items():
            if table in present:
                query = sa.select(sa.column(name), sa.column(content)).select_from(sa.table(table))
                rows: Any = connection.execute(query)
                for found, raw in rows:
                    yield from (f"table {table}, row {found!r}: {what}" for what in _in_row(message, bytes(raw)))


def _in_row(message: Any, raw: bytes) -> Iterator[str]:
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        parsed = message.FromString(raw)
    except DecodeError:
        yield "is no protobuf message of its kind"
        return
    yield from _in_message(parsed)
    spec = getattr(parsed, "spec", None)
    if spec is not None and TAG in getattr(spec, "tags", {}):
        for name in (spec.name, *(feature.name for feature in spec.features)):
            if not NAME_PATTERN.match(name):
                yield f"name {name!r} does not match {NAME_PATTERN.pattern}"


def _in_message(message: Any) -> Iterator[str]:
    """Yield what in a message would run, or import a class that is not Feast's."""
    if message.DESCRIPTOR.name in _FUNCTIONS:
        yield f"holds a function ({message.DESCRIPTOR.name})"
        return
    for field, value in message.ListFields():
        if field.name.endswith("_class_type") and value and not str(value).startswith(_OWN):
            yield f"names the class {value!r}, which would be imported"
        elif field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        elif hasattr(value, "DESCRIPTOR"):
            yield from _in_message(value)
        else:
            for item in value:
                yield from _in_message(item)
