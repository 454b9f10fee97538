"""A temporary repository of users' and items' vectors over time, and examples to join them to."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from recsys_llm import schema
from recsys_llm.bench.repositories import repo_config
from recsys_llm.part_names import part_name
from recsys_llm.producers.arrays import list_array
from recsys_llm.timestamps import TIMESTAMP

DIMENSION = 384
SCALARS = tuple(f"scalar_{number}" for number in range(3))
SERVICE = "bench"
VIEWS: Mapping[str, tuple[str, int, int]] = {
    schema.USER_TEXT_EMBEDDING: (schema.USER, 10_000, 4),
    schema.ITEM_TEXT_EMBEDDING: (schema.ITEM, 5_000, 2),
}
"""View to its entity, the number of keys, and of rows of each."""
COLUMNS = tuple(schema.feature_column(view, schema.EMBEDDING) for view in VIEWS)

_START = datetime(2024, 1, 1, tzinfo=UTC)
_SPAN = 300 * 86_400_000_000
_PART_ROWS = 8192


def write_world(folder: Path, rows: int) -> None:
    """Write the parts of both views, and ``rows`` examples."""
    rng = np.random.default_rng(0)
    keys = {}
    for view, (entity, count, versions) in VIEWS.items():
        names = np.array([f"{entity}_{number}" for number in range(count)], dtype=object)
        keys[entity] = names
        parts = folder / view
        parts.mkdir(parents=True)
        places = rng.permutation(np.repeat(np.arange(count), versions))
        for start in range(0, len(places), _PART_ROWS):
            some = places[start : start + _PART_ROWS]
            table = _stored(schema.JOIN_KEYS[entity], names[some], np.arange(start, start + len(some)), rng)
            file = parts / f"{start}.parquet"
            pq.write_table(table, file)
            file.rename(parts / part_name(file))  # as ours are called: our side pays for the check of their content
    examples = {
        schema.USER_ID: pa.array(rng.choice(keys[schema.USER], rows), pa.string()),
        schema.ITEM_ID: pa.array(rng.choice(keys[schema.ITEM], rows), pa.string()),
        schema.EVENT_TIMESTAMP: _stamps(rng, rows),
        "label": pa.array(rng.integers(0, 2, rows), pa.float32()),
    }
    pq.write_table(pa.table(examples), folder / "examples.parquet")


def read_examples(folder: Path) -> pd.DataFrame:
    """Return the examples."""
    frame: pd.DataFrame = pq.read_table(folder / "examples.parquet").to_pandas()
    return frame


def open_repository(folder: Path) -> Any:
    """Return a ``feast.FeatureStore`` over the parts in ``folder``, applied."""
    import feast
    from feast.data_format import ParquetFormat
    from feast.types import Array, Float32, Int64, String

    online = {"type": "sqlite", "path": str(folder / "online.db")}
    store = feast.FeatureStore(config=repo_config(folder, online))
    entities, views = [], []
    for view, (entity, _, _) in VIEWS.items():
        key = schema.JOIN_KEYS[entity]
        entities.append(feast.Entity(name=entity, join_keys=[key], value_type=feast.ValueType.STRING))
        fields = {
            key: String,
            schema.EMBEDDING: Array(Float32),
            schema.ROW_ID: Int64,
            **dict.fromkeys(SCALARS, Float32),
        }
        source = feast.FileSource(
            name=f"{view}_parts",
            path=str(folder / view),
            file_format=ParquetFormat(),
            timestamp_field=schema.EVENT_TIMESTAMP,
            created_timestamp_column=schema.CREATED_TIMESTAMP,
        )
        views.append(
            feast.FeatureView(
                name=view,
                entities=[entities[-1]],
                ttl=timedelta(0),
                schema=[feast.Field(name=name, dtype=kind) for name, kind in fields.items()],
                source=source,
            )
        )
    read = [view[[schema.EMBEDDING, *SCALARS]] for view in views]
    store.apply([*entities, *views, feast.FeatureService(name=SERVICE, features=read)])
    return store


def _stored(key: str, keys: Any, row_ids: Any, rng: np.random.Generator) -> pa.Table:
    stamps = _stamps(rng, len(keys))
    return pa.table(
        {
            key: pa.array(keys, pa.string()),
            schema.EMBEDDING: list_array(rng.standard_normal((len(keys), DIMENSION), np.float32)),
            schema.ROW_ID: pa.array(row_ids, pa.int64()),
            **{name: pa.array(rng.standard_normal(len(keys), np.float32)) for name in SCALARS},
            schema.EVENT_TIMESTAMP: stamps,
            schema.CREATED_TIMESTAMP: stamps,
        }
    )


def _stamps(rng: np.random.Generator, n: int) -> pa.Array:
    micros = int(_START.timestamp()) * 1_000_000 + rng.integers(0, _SPAN, n)
    return pa.array(micros, pa.int64()).cast(TIMESTAMP)
