"""A temporary repository of two views that are ready to be written online, for any engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import redis
from redis.connection import parse_url

from recsys_llm import schema
from recsys_llm.bench.repositories import repo_config
from recsys_llm.producers.arrays import list_array
from recsys_llm.timestamps import TIMESTAMP

DIMENSION = 384
SCALARS = tuple(f"scalar_{number}" for number in range(6))
VIEWS: Mapping[str, Mapping[str, Any]] = {
    schema.ITEM_TEXT_EMBEDDING: {schema.EMBEDDING: pa.list_(pa.float32()), schema.ROW_ID: pa.int64()},
    schema.ITEM_STATS: dict.fromkeys(SCALARS, pa.float32()),
}
"""View to the Arrow types of its features."""
START = datetime(2000, 1, 1, tzinfo=UTC)
END = datetime(2024, 1, 1, tzinfo=UTC)

_PART_ROWS = 8192


def write_parts(folder: Path, rows: int) -> None:
    """Write the rows of both views, one for each item."""
    rng = np.random.default_rng(0)
    for view, features in VIEWS.items():
        parts = folder / view
        parts.mkdir(parents=True)
        for start in range(0, rows, _PART_ROWS):
            n = min(_PART_ROWS, rows - start)
            pq.write_table(_table(features, np.arange(start, start + n), rng), parts / f"part-{start:08d}.parquet")


def _table(features: Mapping[str, Any], numbers: Any, rng: np.random.Generator) -> pa.Table:
    micros = int(END.timestamp() * 1e6) - rng.integers(1, 30 * 86_400 * 10**6, len(numbers))
    stamps = pa.array(micros, pa.int64()).cast(TIMESTAMP)
    columns = {}
    for name, kind in features.items():
        if pa.types.is_list(kind):
            columns[name] = list_array(rng.standard_normal((len(numbers), DIMENSION), np.float32))
        elif pa.types.is_integer(kind):
            columns[name] = pa.array(rng.integers(-(2**62), 2**62, len(numbers)), kind)
        else:
            columns[name] = pa.array(rng.standard_normal(len(numbers), np.float32), kind)
    keys = pa.array([f"item_{number}" for number in numbers], pa.string())
    return pa.table({schema.ITEM_ID: keys, **columns, schema.EVENT_TIMESTAMP: stamps, schema.CREATED_TIMESTAMP: stamps})


def open_repository(folder: Path, url: str, project: str, engine: str) -> Any:
    """Return a ``feast.FeatureStore`` over the parts in ``folder``, applied.

    Parameters
    ----------
    url
        ``redis://HOST:PORT/DB``.
    engine
        ``type`` of Feast's ``batch_engine``.
    """
    import feast
    from feast.data_format import ParquetFormat
    from feast.types import Array, Float32, Int64, String

    types = {pa.float32(): Float32, pa.int64(): Int64, pa.list_(pa.float32()): Array(Float32)}
    online = {"type": "redis", "connection_string": _connection_string(url)}
    config = repo_config(folder, online, project=project, batch_engine={"type": engine})
    item = feast.Entity(name=schema.ITEM, join_keys=[schema.ITEM_ID], value_type=feast.ValueType.STRING)
    views = [
        feast.FeatureView(
            name=view,
            entities=[item],
            ttl=timedelta(0),
            schema=[
                feast.Field(name=schema.ITEM_ID, dtype=String),
                *(feast.Field(name=name, dtype=types[kind]) for name, kind in features.items()),
            ],
            source=feast.FileSource(
                name=f"{view}_parts",
                path=str(folder / view),
                file_format=ParquetFormat(),
                timestamp_field=schema.EVENT_TIMESTAMP,
                created_timestamp_column=schema.CREATED_TIMESTAMP,
            ),
        )
        for view, features in VIEWS.items()
    ]
    store = feast.FeatureStore(config=config)
    store.apply([item, *views])
    return store


def _connection_string(url: str) -> str:
    options = parse_url(url)  # type: ignore[no-untyped-call]  # redis-py is typed in part
    extra = "".join(f",{name}={options[name]}" for name in ("username", "password") if name in options)
    return f"{options.get('host', 'localhost')}:{options.get('port', 6379)},db={options.get('db', 0)}{extra}"


def stored_rows(client: redis.Redis, project: str, *, batch: int = 1024) -> Iterator[tuple[bytes, dict[bytes, bytes]]]:
    """Yield the hash of each entity of a project, its key without the project."""
    suffix = project.encode()
    keys = [key for key in client.scan_iter(b"*" + suffix, count=batch) if key.endswith(suffix)]
    for start in range(0, len(keys), batch):
        some = keys[start : start + batch]
        with client.pipeline(transaction=False) as pipe:
            for key in some:
                pipe.hgetall(key)
            yield from zip((key.removesuffix(suffix) for key in some), pipe.execute(), strict=True)


def view_fields(view: str) -> set[bytes]:
    """Return the fields of a view in the hash of an entity."""
    from feast.infra.online_stores.helpers import _mmh3

    return {f"_ts:{view}".encode(), *(_mmh3(f"{view}:{feature}") for feature in VIEWS[view])}


def remove_rows(client: redis.Redis, project: str, *, batch: int = 1024) -> None:
    """Remove all hashes of a project."""
    keys = list(client.scan_iter(b"*" + project.encode(), count=batch))
    for start in range(0, len(keys), batch):
        client.unlink(*keys[start : start + batch])
