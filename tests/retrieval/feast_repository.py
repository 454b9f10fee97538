"""A small Feast repository written from plain rows: offline parts in the form that producers write, and online rows.

Views are those of the packaged repository, with 4-d vectors, and two more: ``item_notes`` (no row ids, so that lists
pass through Feast's join) and ``user_mood`` (a ttl of ten hours).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
from feast.data_format import ParquetFormat
from feast.data_source import DataSource
from feast.types import Array, Float32, Float64, Int64, String
from sqlalchemy.engine import make_url

from recsys_llm import schema

T0 = datetime(2024, 1, 1, tzinfo=UTC)
STAMP = pa.timestamp("us", "UTC")
DIMENSION = 4
NOTES, MOOD = "item_notes", "user_mood"
PLAIN, EVERYTHING = "plain", "everything"
MOOD_TTL = timedelta(hours=10)

FLOATS, STRINGS = pa.list_(pa.float32()), pa.list_(pa.string())
Views = Mapping[str, tuple[str, timedelta, Mapping[str, tuple[Any, Any]]]]
"""Of each view: its entity, its ttl, and its features' types of Feast and of Arrow."""

VIEWS: Views = {
    schema.ITEM_TEXT_EMBEDDING: (
        schema.ITEM,
        timedelta(0),
        {"embedding": (Array(Float32), FLOATS), "row_id": (Int64, pa.int64())},
    ),
    schema.USER_TEXT_EMBEDDING: (
        schema.USER,
        timedelta(days=365),
        {"embedding": (Array(Float32), FLOATS), "row_id": (Int64, pa.int64())},
    ),
    schema.USER_NEXT_ITEMS: (
        schema.USER,
        timedelta(days=365),
        {
            "item_ids": (Array(String), STRINGS),
            "log_probs": (Array(Float32), FLOATS),
            "entropy": (Float32, pa.float32()),
            "centroid": (Array(Float32), FLOATS),
            "row_id": (Int64, pa.int64()),
        },
    ),
    schema.ITEM_STATS: (
        schema.ITEM,
        timedelta(0),
        {
            "n_events": (Int64, pa.int64()),
            "mean_rating": (Float32, pa.float32()),
            "category": (String, pa.string()),
        },
    ),
    NOTES: (
        schema.ITEM,
        timedelta(0),
        {"words": (Array(String), STRINGS), "counts": (Array(Int64), pa.list_(pa.int64()))},
    ),
    MOOD: (schema.USER, MOOD_TTL, {"level": (Float64, pa.float64())}),
}


def hours(count: float) -> datetime:
    """Return a time that many hours after the start of 2024."""
    return T0 + timedelta(hours=count)


def online_config(kind: str, folder: Path, url: str | None = None) -> dict[str, Any]:
    """Return ``online_store`` for a kind of store: sqlite, redis, guarded (our Redis store), postgres or generic
    (sqlite under another name).
    """
    if kind in ("redis", "guarded"):
        host = str(url).removeprefix("redis://").split("/")[0]
        ours = {"redis": "redis", "guarded": "recsys_llm.stores.RedisOnlineStore"}
        return {"type": ours[kind], "connection_string": f"{host},db=0"}
    if kind == "postgres":
        server = make_url(str(url))
        names = {"host": server.host, "port": server.port, "database": server.database, "user": server.username}
        return {"type": "postgres", **names, "password": server.password, "sslmode": "disable"}
    if kind == "generic":
        return {"type": "tests.retrieval.generic_store.GenericOnlineStore", "path": str(folder / "generic.db")}
    return {"type": "sqlite", "path": "data/online.db"}


def applied_store(
    folder: Path,
    views: Views,
    source: Callable[[str], DataSource],
    *,
    services: Mapping[str, Sequence[str]] | None = None,
    tags: Mapping[str, dict[str, str]] | None = None,
    **settings: Any,
) -> FeatureStore:
    """Apply views, each over its ``source``, and services of the views that they name; return the store.

    ``settings`` are those of the config that differ: its project and its stores.
    """
    config = RepoConfig(
        provider="local",
        registry={"registry_type": "sql", "path": f"sqlite:///{folder / 'registry.db'}", "cache_ttl_seconds": 600},
        entity_key_serialization_version=3,
        repo_path=folder,
        **settings,
    )
    entities = {
        name: Entity(name=name, join_keys=[key], value_type=ValueType.STRING) for name, key in schema.JOIN_KEYS.items()
    }
    made = {
        name: FeatureView(
            name=name,
            entities=[entities[entity]],
            ttl=ttl,
            schema=[
                Field(name=schema.JOIN_KEYS[entity], dtype=String),
                *(Field(name=feature, dtype=kind) for feature, (kind, _) in features.items()),
            ],
            source=source(name),
            tags=(tags or {}).get(name, {}),
        )
        for name, (entity, ttl, features) in views.items()
    }
    named = services or {EVERYTHING: tuple(views), PLAIN: (schema.ITEM_STATS, MOOD)}
    read = [FeatureService(name=name, features=[made[view] for view in of]) for name, of in named.items()]
    store = FeatureStore(config=config)
    store.apply([*entities.values(), *made.values(), *read])
    return store


class Repository:
    """The repository, applied once; parts and online rows may be rewritten."""

    def __init__(
        self,
        folder: Path,
        *,
        online: Mapping[str, Any],
        project: str = "shop",
        offline: str = "duckdb",
        views: Views = VIEWS,
        tags: Mapping[str, dict[str, str]] | None = None,
        services: Mapping[str, Sequence[str]] | None = None,
        **settings: Any,
    ) -> None:
        """Take views as :data:`VIEWS` has them, the tags of some, the views of each service, and more of the config."""
        self.folder = folder
        self.numbers = count()
        self.views = views
        for view in views:
            self.write(view, [])
        self.store = applied_store(
            folder,
            views,
            self._source,
            services=services,
            tags=tags,
            project=project,
            offline_store={"type": offline},
            online_store=dict(online),
            **settings,
        )

    def directory(self, view: str) -> Path:
        return self.folder / "features" / view

    def write(self, view: str, rows: Sequence[Mapping[str, Any]], *, part: str = "part-0", **manifest: str) -> None:
        """Write one part, in place of the one of that name; a row has the join key, ``at``, features, and ``created``.

        Files get new names: DuckDB remembers what it read from a path, and parts are never written over anyway.
        """
        entity, _, features = self.views[view]
        key = schema.JOIN_KEYS[entity]
        columns = {
            key: pa.array([row[key] for row in rows], pa.string()),
            **{name: pa.array([row.get(name) for row in rows], kind) for name, (_, kind) in features.items()},
            schema.EVENT_TIMESTAMP: pa.array([row["at"] for row in rows], STAMP),
            schema.CREATED_TIMESTAMP: pa.array([row.get("created", row["at"]) for row in rows], STAMP),
            schema.CONTENT_HASH: pa.array([b"0" * 16] * len(rows), pa.binary(16)),
        }
        metadata = {schema.TAG.encode(): json.dumps({"view": view, **manifest})} if manifest else None
        self.directory(view).mkdir(parents=True, exist_ok=True)
        for old in self.directory(view).glob(f"{part}.*.parquet"):
            old.unlink()
        file = self.directory(view) / f"{part}.{next(self.numbers)}.parquet"
        pq.write_table(pa.table(columns).replace_schema_metadata(metadata), file)

    def write_online(self, view: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write online rows the way that Feast itself does."""
        from feast.utils import _convert_arrow_to_proto

        entity, _, features = self.views[view]
        key = schema.JOIN_KEYS[entity]
        batch = pa.record_batch(
            {
                key: pa.array([row[key] for row in rows], pa.string()),
                **{name: pa.array([row.get(name) for row in rows], kind) for name, (_, kind) in features.items()},
                schema.EVENT_TIMESTAMP: pa.array([row["at"] for row in rows], STAMP),
                schema.CREATED_TIMESTAMP: pa.array([row["at"] for row in rows], STAMP),
            }
        )
        definition = self.store.get_feature_view(view)
        data = _convert_arrow_to_proto(batch, definition, {key: ValueType.STRING})
        self.store.provider.online_write_batch(self.store.config, definition, data, None)

    def _source(self, view: str) -> FileSource:
        return FileSource(
            name=f"{view}_parts",
            path=str(self.directory(view)),
            file_format=ParquetFormat(),
            timestamp_field=schema.EVENT_TIMESTAMP,
            created_timestamp_column=schema.CREATED_TIMESTAMP,
        )


def examples(*rows, index=None, **columns):
    """Make a frame from rows of (user, item, time)."""
    users, items, times = zip(*rows, strict=True) if rows else ((), (), ())
    return pd.DataFrame(
        {
            "user_id": pd.Series(users, dtype=object),
            "item_id": pd.Series(items, dtype=object),
            "event_timestamp": pd.Series(pd.to_datetime(list(times), utc=True)).dt.as_unit("us"),
            **columns,
        }
    ).set_axis(pd.RangeIndex(len(rows)) if index is None else index, axis=0)


def cell(value):
    """Return a cell of a frame as plain Python: None where missing."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    return None if value is None or (isinstance(value, float | np.floating) and np.isnan(value)) else value
