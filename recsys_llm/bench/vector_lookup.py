"""What a stored vector costs online: bytes, and the time to look up and decode those of many candidates."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import feast
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from feast.data_format import ParquetFormat
from feast.types import Array, Bytes, Float32, String

from recsys_llm import schema
from recsys_llm.bench.repositories import repo_config
from recsys_llm.bench.timing import interleaved
from recsys_llm.engine.publish import OnlinePublisher
from recsys_llm.producers.arrays import vector_array
from recsys_llm.producers.hashing import HASH_TYPE
from recsys_llm.retrieval import FeatureClient
from recsys_llm.retrieval.online import Request, open_reader
from recsys_llm.storage import VectorStorage
from recsys_llm.timestamps import BEGINNING, TIMESTAMP


class LookupCost(NamedTuple):
    """Of one way to store vectors."""

    bytes_per_item: float
    """Of the stored value, Feast's own few bytes included."""
    milliseconds: list[float]
    """Of each lookup."""


def lookup_costs(
    storages: Iterable[VectorStorage], *, candidates: int = 500, runs: int = 15
) -> dict[VectorStorage, LookupCost]:
    """Look up random vectors in a temporary sqlite store of Feast's, in each form in turns.

    Parameters
    ----------
    candidates
        Items in a lookup.
    runs
        Lookups of each form, after one that isn't counted.
    """
    distinct = list(dict.fromkeys(storages))
    names = [f"vectors_{place}" for place in range(len(distinct))]
    ids = [f"item{place}" for place in range(candidates)]
    with TemporaryDirectory() as folder:
        store = _open_store(Path(folder), dict(zip(names, distinct, strict=True)))
        for name, stored in zip(names, distinct, strict=True):
            _publish(store, name, stored, ids)
        with FeatureClient(store=store) as client:
            column = {name: schema.feature_column(name, schema.EMBEDDING) for name in names}
            sides = {
                name: (lambda name=name: client.lookup("", ids, service=name).vector(column[name])) for name in names
            }
            interleaved(sides, 1)
            seconds = interleaved(sides, runs)
            sizes = [_stored_bytes(store, client, name, ids) for name in names]
    return {
        stored: LookupCost(size, [1000 * second for second in seconds[name]])
        for name, stored, size in zip(names, distinct, sizes, strict=True)
    }


def _open_store(folder: Path, storages: dict[str, VectorStorage]) -> feast.FeatureStore:
    online = {"type": "sqlite", "path": str(folder / "online.db")}
    store = feast.FeatureStore(config=repo_config(folder, online))
    item = feast.Entity(name=schema.ITEM, join_keys=[schema.ITEM_ID], value_type=feast.ValueType.STRING)
    views = [_view(folder, name, item, stored) for name, stored in storages.items()]
    store.apply([item, *views, *(feast.FeatureService(name=view.name, features=[view]) for view in views)])
    return store


def _view(folder: Path, name: str, item: feast.Entity, stored: VectorStorage) -> feast.FeatureView:
    return feast.FeatureView(
        name=name,
        entities=[item],
        ttl=timedelta(0),
        schema=[
            feast.Field(name=schema.ITEM_ID, dtype=String),
            feast.Field(name=schema.EMBEDDING, dtype=Bytes if stored.is_bytes else Array(Float32)),
        ],
        source=feast.FileSource(
            name=f"{name}_parts",
            path=str(folder / name),
            file_format=ParquetFormat(),
            timestamp_field=schema.EVENT_TIMESTAMP,
        ),
        tags=stored.tags,
    )


def _publish(store: feast.FeatureStore, name: str, stored: VectorStorage, ids: list[str]) -> None:
    vectors: npt.NDArray[np.float32] = np.random.default_rng(0).normal(size=(len(ids), stored.dim)).astype(np.float32)
    table = pa.table(
        {
            schema.ITEM_ID: ids,
            schema.EMBEDDING: vector_array(vectors, stored),
            schema.EVENT_TIMESTAMP: pa.array([BEGINNING] * len(ids), TIMESTAMP),
            schema.CONTENT_HASH: pa.nulls(len(ids), HASH_TYPE),
        }
    )
    publisher = OnlinePublisher(store.config, store.provider.online_store, store.get_feature_view(name))
    publisher(table)


def _stored_bytes(store: feast.FeatureStore, client: FeatureClient, name: str, ids: list[str]) -> float:
    request = Request(schema.ITEM, client.resolve(name).views, tuple(ids))
    reader = open_reader(store)
    try:
        values = reader.read([request])[0][0].values[schema.EMBEDDING]
    finally:
        reader.close()
    return sum(len(value or b"") for value in values) / len(values)
