"""The repository of :mod:`tests.retrieval.feast_repository` over tables of a real Postgres, Feast's offline store."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
from feast.infra.offline_stores.contrib.postgres_offline_store.postgres_source import PostgreSQLSource
from sqlalchemy.engine import make_url

from recsys_llm import schema
from tests.retrieval.feast_repository import VIEWS, applied_store

TYPES = {
    pa.string(): "text",
    pa.float32(): "real",
    pa.float64(): "double precision",
    pa.int64(): "bigint",
    pa.list_(pa.float32()): "real[]",
    pa.list_(pa.string()): "text[]",
    pa.list_(pa.int64()): "bigint[]",
}


class PostgresRepository:
    """Tables in a schema of their own, dropped at the end."""

    def __init__(self, folder: Path, url: str, *, services: Mapping[str, Sequence[str]] | None = None) -> None:
        parsed = make_url(url)
        self.connection = psycopg.connect(url.replace("+psycopg", "", 1), autocommit=True)
        self.schema = f"s{uuid.uuid4().hex[:10]}"
        self.connection.execute(f"CREATE SCHEMA {self.schema}")
        self.views = VIEWS
        for view, (entity, _, features) in VIEWS.items():
            columns = [f"{schema.JOIN_KEYS[entity]} text", *(f"{name} {TYPES[a]}" for name, (_, a) in features.items())]
            stamps = "event_timestamp timestamptz, created_timestamp timestamptz, part text"
            self.connection.execute(f"CREATE TABLE {self.schema}.{view} ({', '.join(columns)}, {stamps})")
        offline = {
            "type": "postgres",
            "host": parsed.host,
            "port": parsed.port,
            "database": parsed.database,
            "db_schema": self.schema,
            "user": parsed.username,
            "password": parsed.password,
            "sslmode": "disable",
        }
        online = {"type": "sqlite", "path": "data/online.db"}
        self.store = applied_store(
            folder, VIEWS, _source, services=services, project="shop", offline_store=offline, online_store=online
        )

    def close(self) -> None:
        self.connection.execute(f"DROP SCHEMA {self.schema} CASCADE")
        self.connection.close()

    def clear(self) -> None:
        for view in VIEWS:
            self.connection.execute(f"TRUNCATE {self.schema}.{view}")

    def write(self, view: str, rows: Sequence[Mapping[str, Any]], *, part: str = "part-0") -> None:
        """Write one part, in place of the one of that name."""
        entity, _, features = VIEWS[view]
        key = schema.JOIN_KEYS[entity]
        names = [key, *features]
        marks = ", ".join(["%s", *(f"%s::{TYPES[arrow]}" for _, arrow in features.values()), "%s", "%s", "%s"])
        self.connection.execute(f"DELETE FROM {self.schema}.{view} WHERE part = %s", [part])
        with self.connection.cursor() as cursor:
            columns = f"{', '.join(names)}, event_timestamp, created_timestamp, part"
            query = f"INSERT INTO {self.schema}.{view} ({columns}) VALUES ({marks})"
            typed = {
                name: pa.array([row.get(name) for row in rows], a).to_pylist() for name, (_, a) in features.items()
            }
            values = [
                [row[key], *(typed[name][place] for name in features), row["at"], row.get("created", row["at"]), part]
                for place, row in enumerate(rows)
            ]
            if values:
                cursor.executemany(query, values)


def _source(view: str) -> PostgreSQLSource:
    return PostgreSQLSource(
        name=f"{view}_table",
        table=view,
        timestamp_field=schema.EVENT_TIMESTAMP,
        created_timestamp_column=schema.CREATED_TIMESTAMP,
    )
