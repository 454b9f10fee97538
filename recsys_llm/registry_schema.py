"""A SQL registry that is only read: its tables are checked, and none is made.

``schema_mode: verify`` under ``registry`` in feature_store.yaml is Feast's own key: it makes no tables, and wants all
of them. Feast then goes on to write what a role with SELECT alone may not, and never looks at columns. Here both are
checked before, so that a process that serves may have such a role, and a registry of another version of Feast is named
instead of failing in mid-request.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from recsys_llm.errors import RegistryError
from recsys_llm.passwords import shown_url

VERIFY = "verify"


def check_schema(engine: sa.Engine, project: str) -> None:
    """Refuse a SQL registry that lacks a table or a column which this Feast reads, or that a read-only role can't open.

    Parameters
    ----------
    engine
        Of the registry. Nothing is written.
    project
        Of feature_store.yaml.

    Raises
    ------
    RegistryError
        Tables or columns are missing; or the project was never applied, and the role may not enter it.
    """
    where = f"registry {shown_url(engine.url)}"
    missing = missing_objects(engine)
    if missing:
        raise RegistryError(
            f"{where}: {', '.join(missing)} missing, and schema_mode: {VERIFY} makes none; with a role that may create "
            "tables run `feast registry create-schema` (it adds tables, not columns: a table that lacks some is of "
            "another version of Feast)"
        )
    if not _may_insert(engine) and not _is_known(engine, project):
        raise RegistryError(
            f"{where}: holds no project {project!r}, and role {engine.url.username!r} may only read; run `feast apply` "
            "with a role that may write"
        )


def missing_objects(engine: sa.Engine) -> list[str]:
    """Return each table that Feast's registry needs and the database lacks, and each column of those it has.

    Returns
    -------
    list of str
        Such as ``table permissions``, ``column feature_views.user_metadata``; in the order of names.
    """
    from feast.infra.registry.sql import metadata

    inspector = sa.inspect(engine)
    present = set(inspector.get_table_names(schema=metadata.schema))
    found = []
    for name, table in sorted(metadata.tables.items()):
        if name not in present:
            found.append(f"table {name}")
            continue
        columns = {column["name"] for column in inspector.get_columns(name, schema=metadata.schema)}
        found += [f"column {name}.{column}" for column in sorted(set(table.columns.keys()) - columns)]
    return found


def _may_insert(engine: sa.Engine) -> bool:
    if engine.dialect.name != "postgresql":
        return True  # there it is the file's or the server's matter; Feast's own error says so
    with engine.connect() as connection:
        return bool(connection.scalar(sa.text("select has_table_privilege('feast_metadata', 'INSERT')")))


def _is_known(engine: sa.Engine, project: str) -> bool:
    from feast.infra.registry.sql import FeastMetadataKeys, feast_metadata

    key: Any = feast_metadata.c.metadata_key == FeastMetadataKeys.PROJECT_UUID.value
    query = sa.select(sa.func.count()).select_from(feast_metadata).where(key, feast_metadata.c.project_id == project)
    with engine.connect() as connection:
        return bool(connection.scalar(query))
