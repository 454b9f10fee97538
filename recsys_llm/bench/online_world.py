"""A temporary Feast repository for ``bench online``: one user and a catalogue of items in a real online store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from recsys_llm import schema
from recsys_llm.bench.repositories import repo_config
from recsys_llm.errors import DataError
from recsys_llm.retrieval import open_store
from recsys_llm.timestamps import TIMESTAMP

DIMENSION = 384
SCALARS = tuple(f"scalar_{number}" for number in range(6))
PREDICTED = 20
SERVICE = "bench"
USER_KEY = "u42"
WRITE_ROWS = 500
FEATURES = "data/features"
"""Where a repository of `recsys-llm init` keeps its parts."""

_FLOATS, _STRINGS = pa.list_(pa.float32()), pa.list_(pa.string())
_VECTOR = {schema.EMBEDDING: _FLOATS}
_STATS = dict.fromkeys(SCALARS, pa.float32())
VIEWS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    schema.ITEM_TEXT_EMBEDDING: (schema.ITEM, _VECTOR),
    schema.ITEM_STATS: (schema.ITEM, _STATS),
    schema.USER_TEXT_EMBEDDING: (schema.USER, _VECTOR),
    schema.USER_STATS: (schema.USER, _STATS),
    schema.USER_NEXT_ITEMS: (schema.USER, {schema.ITEM_IDS: _STRINGS, schema.LOG_PROBS: _FLOATS}),
}
"""View to its entity and the Arrow types of its features: a 384-d vector and 6 scalars for each user and item, and 20
predicted ids with their log-probabilities for the user."""


@dataclass(frozen=True)
class World:
    """What a request is made from."""

    store: Any
    """``feast.FeatureStore``."""
    user: str
    items: tuple[str, ...]
    service: str


def build_world(folder: Path, *, items: int, store: str, redis_url: str | None, seed: int = 0) -> World:
    """Apply a repository in ``folder`` and write its online rows the way that Feast itself does.

    Parameters
    ----------
    items
        Rows of items.
    store
        ``redis`` or ``sqlite``, or ``recsys_llm.stores.RedisOnlineStore`` (which takes no password in its URL).
    redis_url
        ``redis://HOST:PORT/DB``; for ``redis`` only.
    """
    from feast import Entity, FeatureService, FeatureStore, ValueType

    online = (
        {"type": "sqlite", "path": "online.db"}
        if store == "sqlite"
        else _redis_config(str(redis_url)) | {"type": store}
    )
    project = f"bench_{np.random.default_rng().integers(2**32):08x}"
    opened = FeatureStore(config=repo_config(folder, online, project=project))
    entities = {
        name: Entity(name=name, join_keys=[key], value_type=ValueType.STRING) for name, key in schema.JOIN_KEYS.items()
    }
    views = {name: _view(folder, name, entities[entity]) for name, (entity, _) in VIEWS.items()}
    opened.apply([*entities.values(), *views.values(), FeatureService(name=SERVICE, features=list(views.values()))])
    catalogue = tuple(f"i{number}" for number in range(items))
    rng = np.random.default_rng(seed)
    for name, (entity, features) in VIEWS.items():
        keys = catalogue if entity == schema.ITEM else (USER_KEY,)
        for start in range(0, len(keys), WRITE_ROWS):
            _write(opened, views[name], _rows(features, keys[start : start + WRITE_ROWS], catalogue, rng))
    return World(opened, USER_KEY, catalogue, SERVICE)


def world_of(repository: Path, items: int, config_file: str | None = None) -> World:
    """Return a user and items of a materialised repository.

    Raises
    ------
    DataError
        It holds none, or too few items.
    """
    users = _keys(repository, schema.USER_STATS, schema.USER_ID)
    catalogue = _keys(repository, schema.ITEM_TEXT_EMBEDDING, schema.ITEM_ID)
    if len(catalogue) < items:
        raise DataError(f"{repository}: holds {len(catalogue)} items, fewer than {items} candidates; ask for fewer")
    return World(open_store(repository, config_file=config_file), users[0], tuple(catalogue), schema.RANKER)


def drop_world(world: World) -> None:
    """Remove the repository's rows from its online store: a Redis that was given holds other things too."""
    world.store.teardown()


def _keys(repository: Path, view: str, key: str) -> list[str]:
    parts = repository / FEATURES / view
    if not parts.is_dir():
        raise DataError(f"{parts}: not there; run `feast materialize` first")
    return sorted(set(ds.dataset(parts, format="parquet").to_table(columns=[key]).column(key).to_pylist()))


def _redis_config(url: str) -> dict[str, Any]:
    from redis.connection import parse_url

    options = parse_url(url)  # type: ignore[no-untyped-call]
    extra = "".join(f",{name}={options[name]}" for name in ("username", "password") if name in options)
    address = f"{options.get('host', 'localhost')}:{options.get('port', 6379)}"
    return {"type": "redis", "connection_string": f"{address},db={options.get('db', 0)}{extra}"}


def _view(folder: Path, name: str, entity: Any) -> Any:
    from feast import FeatureView, Field, FileSource
    from feast.data_format import ParquetFormat
    from feast.types import Array, Float32, String

    types = {pa.float32(): Float32, _FLOATS: Array(Float32), _STRINGS: Array(String)}
    features = VIEWS[name][1]
    parts = folder / "features" / name
    parts.mkdir(parents=True)
    stamps = {schema.EVENT_TIMESTAMP: TIMESTAMP, schema.CREATED_TIMESTAMP: TIMESTAMP}
    columns = {entity.join_key: pa.string(), **features, **stamps}
    pq.write_table(pa.schema(list(columns.items())).empty_table(), parts / "part-0.parquet")
    return FeatureView(
        name=name,
        entities=[entity],
        ttl=timedelta(days=365),
        schema=[
            Field(name=entity.join_key, dtype=String),
            *(Field(name=feature, dtype=types[kind]) for feature, kind in features.items()),
        ],
        source=FileSource(
            name=f"{name}_parts",
            path=str(parts),
            file_format=ParquetFormat(),
            timestamp_field=schema.EVENT_TIMESTAMP,
            created_timestamp_column=schema.CREATED_TIMESTAMP,
        ),
    )


def _rows(features: Mapping[str, Any], keys: tuple[str, ...], catalogue: tuple[str, ...], rng: Any) -> dict[str, Any]:
    """Return columns of so many rows; ``keys`` under an empty name."""
    n = len(keys)
    now = datetime.now(UTC).replace(microsecond=0)
    # Texts of items change now and then: each row has a time of its own.
    stamps = [now - timedelta(seconds=int(age)) for age in rng.integers(60, 30 * 86_400, n)]
    columns: dict[str, Any] = {"": pa.array(keys, pa.string()), schema.EVENT_TIMESTAMP: pa.array(stamps, TIMESTAMP)}
    for name, kind in features.items():
        if name == schema.ITEM_IDS:
            values = [list(rng.choice(catalogue, PREDICTED)) for _ in keys]
        elif kind == _FLOATS:
            length = PREDICTED if name == schema.LOG_PROBS else DIMENSION
            values = list(rng.standard_normal((n, length)).astype(np.float32))
        else:
            values = rng.standard_normal(n).astype(np.float32)
        columns[name] = pa.array(values, kind)
    return columns


def _write(store: Any, view: Any, columns: dict[str, Any]) -> None:
    from feast import ValueType
    from feast.utils import _convert_arrow_to_proto

    key = view.entity_columns[0].name
    named = {key if name == "" else name: column for name, column in columns.items()}
    batch = pa.record_batch(named | {schema.CREATED_TIMESTAMP: named[schema.EVENT_TIMESTAMP]})
    rows = _convert_arrow_to_proto(batch, view, {key: ValueType.STRING})
    store.provider.online_write_batch(store.config, view, rows, None)
