"""No registry row that runs code is ever loaded.

Feast stores functions of on-demand, stream and batch views as pickles, and names classes by import path; reading such
a row runs what is in it, so write access to the registry would be code execution wherever it is read. recsys_llm needs
none of them. Here the raw rows of a SQL registry are parsed as protobuf, which runs nothing, before Feast sees them:
when a registry is opened, and whenever rows are read from the database anew. Registries of other kinds, whose rows
can't be read beforehand, are not opened.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import sqlalchemy as sa

from recsys_llm.errors import ConfigError, RegistryError, UnsafeRegistryError
from recsys_llm.passwords import database_url, first_line, hide_in_feast, shown_url
from recsys_llm.registry_rows import REFUSED, messages, problems_in
from recsys_llm.registry_schema import VERIFY, check_schema

_PLAIN_VIEW = "feature_view"
_READS = (
    "proto",
    "_get_object",
    "_list_objects",
    "_get_version_snapshot",
    "_apply_object",
    "get_feature_view_by_version",
)
"""Methods of Feast's SQL registry in which rows become objects."""
SQL = "sql"


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
    """Let Feast open SQL registries alone, and check rows before it reads them, in this process, from now on.

    Feast has no place to hang this on: `feast materialize` reads all views before it calls the compute engine. Its
    configuration shows no password of the registry from then on.
    """
    hide_in_feast()
    from feast.feature_store import FeatureStore
    from feast.infra.registry.sql import SqlRegistry

    if getattr(SqlRegistry, "_recsys_llm_guarded", False):
        return
    SqlRegistry._recsys_llm_guarded = True
    SqlRegistry.__init__ = _checked_first(SqlRegistry.__init__, _when_opened)
    FeatureStore._create_registry = _checked_first(FeatureStore._create_registry, _when_chosen)
    for name in _READS:
        setattr(SqlRegistry, name, _checked_first(getattr(SqlRegistry, name), _when_read))


def _checked_first(method: Callable[..., Any], check: Callable[..., None]) -> Callable[..., Any]:
    @functools.wraps(method)
    def checked(self: Any, *arguments: Any, **options: Any) -> Any:
        check(self, *arguments, **options)
        return method(self, *arguments, **options)

    return checked


def check_kind(registry_config: Any) -> None:
    """Refuse a registry whose rows can't be checked before Feast loads them.

    Raises
    ------
    UnsafeRegistryError
        It is no SQL registry.
    """
    kind = str(registry_config.registry_type)
    if kind != SQL:
        raise UnsafeRegistryError(
            f"registry: expected registry_type: {SQL}, found {kind!r}, whose rows could run code when they are read; "
            "it was not loaded. Set registry: {registry_type: sql, path: 'sqlite:///data/registry.db'} or a "
            "Postgres URL in feature_store.yaml, and run `feast apply`"
        )


def _when_chosen(store: Any) -> None:
    check_kind(store.config.registry)


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
    present = set(sa.inspect(engine).get_table_names())
    found: Any
    with engine.connect() as connection:
        for table, (name, what) in REFUSED.items():
            if table in present:
                for found in connection.scalars(sa.select(sa.column(name)).select_from(sa.table(table)).limit(1)):
                    yield f"table {table} has {found!r}, {what}"
        if "feature_view_version_history" in present:
            kind: Any = sa.column("feature_view_type")
            name_of: Any = sa.column("feature_view_name")
            query = sa.select(name_of, kind).select_from(sa.table("feature_view_version_history"))
            for found, of in connection.execute(query.where(kind != _PLAIN_VIEW).limit(1)):
                yield f"table feature_view_version_history has {found!r}, a version of a {of}"
        for table, (name, content, message) in messages().items():
            if table in present:
                query = sa.select(sa.column(name), sa.column(content)).select_from(sa.table(table))
                rows: Any = connection.execute(query)
                for found, raw in rows:
                    yield from (f"table {table}, row {found!r}: {what}" for what in problems_in(message, bytes(raw)))
