"""Repositories with an online store of their own, and everything that is stored there."""

from __future__ import annotations

import sqlite3
import uuid
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import redis
from feast import FeatureStore, ValueType
from feast.types import Array, Bool, Bytes, Float32, Float64, Int32, Int64, String
from feast.utils import _convert_arrow_to_proto

from recsys_llm import schema
from recsys_llm.engine.publish import OnlinePublisher
from tests.retrieval.feast_repository import STAMP, T0, Repository, online_config

ALL = "all_types"
PAIR = "pair"
ELEMENTS = {
    "f32": (Float32, pa.float32(), [0.0, 0.1, None, -1.5, float("nan")]),
    "f64": (Float64, pa.float64(), [0.1, None, 2.0, float("inf"), 0.0]),
    "i32": (Int32, pa.int32(), [0, -1, 2**31 - 1, None, 7]),
    "i64": (Int64, pa.int64(), [None, -(2**53), 2**53, 0, 300]),
    "text": (String, pa.string(), ["", "ключ", None, "a\x00b", "x" * 200]),
    "raw": (Bytes, pa.binary(), [b"\x00\xff", b"", None, b"q" * 300, b"z"]),
    "flag": (Bool, pa.bool_(), [True, False, None, True, False]),
}
FEATURES = {name: (kind, arrow) for name, (kind, arrow, _) in ELEMENTS.items()} | {
    f"{name}_list": (Array(kind), pa.list_(arrow)) for name, (kind, arrow, _) in ELEMENTS.items()
}
TWO = {"number": (Int64, pa.int64()), "vector": (Array(Float32), pa.list_(pa.float32()))}
VIEWS = {ALL: (schema.ITEM, timedelta(0), FEATURES), PAIR: (schema.ITEM, timedelta(0), TWO)}


def columns_of(rows: int) -> dict[str, pa.Array]:
    """Return the values of all features in so many rows: scalars with nulls, lists that are null, empty and filled."""
    found = {}
    for name, (_, arrow, values) in ELEMENTS.items():
        found[name] = pa.array([values[row % len(values)] for row in range(rows)], arrow)
        filled = [value for value in values if value is not None]
        lists = [None if row % 4 == 0 else filled[: row % 4 - 1] for row in range(rows)]
        found[f"{name}_list"] = pa.array(lists, pa.list_(arrow))
    return found


def table(columns, times, ids=None) -> pa.Table:
    n = len(times)
    return pa.table(
        {
            schema.ITEM_ID: pa.array(ids or [f"i{row}" for row in range(n)], pa.string()),
            **columns,
            schema.EVENT_TIMESTAMP: pa.array(times, STAMP),
            schema.CREATED_TIMESTAMP: pa.array([T0 + timedelta(days=9, microseconds=row) for row in range(n)], STAMP),
            schema.CONTENT_HASH: pa.nulls(n, pa.binary(16)),
        }
    )


def pair(number, at, ids=("i0",)) -> pa.Table:
    """Make rows whose two features tell the same number."""
    values = {"number": [number] * len(ids), "vector": [[float(number)] * 3] * len(ids)}
    return table({name: pa.array(values[name], arrow) for name, (_, arrow) in TWO.items()}, [at] * len(ids), list(ids))


class Place:
    """A repository with an online store of its own."""

    def __init__(self, kind: str, folder: Path, url: str | None, settings: dict[str, Any], **online: Any) -> None:
        self.kind, self.url = kind, url
        self.project = f"p{uuid.uuid4().hex[:8]}"
        config = online_config(kind, folder, url) | online
        services = {"s": (ALL, PAIR)}
        self.repository = Repository(
            folder, online=config, project=self.project, views=VIEWS, services=services, **settings
        )
        self.store = self.repository.store

    def publisher(self, view=PAIR):
        store = FeatureStore(config=self.store.config)  # as another process has it
        return OnlinePublisher(store.config, store.provider.online_store, store.get_feature_view(view))

    def publish(self, rows, view=PAIR):
        publisher = self.publisher(view)
        publisher(rows)
        return publisher.written

    def publish_as_feast(self, rows, view):
        definition = self.store.get_feature_view(view)
        batch = rows.drop_columns([schema.CONTENT_HASH]).combine_chunks().to_batches()[0]
        data = _convert_arrow_to_proto(batch, definition, {schema.ITEM_ID: ValueType.STRING})
        self.store.provider.online_store.online_write_batch(self.store.config, definition, data, None)

    def dump(self, view):
        """Return everything that is stored."""
        if self.kind == "redis":
            with redis.Redis.from_url(self.url) as client:
                ours = [key for key in client.scan_iter("*") if key.endswith(self.project.encode())]
                return {key.removesuffix(self.project.encode()): client.hgetall(key) for key in ours}
        path = self.repository.folder / self.store.config.online_store.path
        with sqlite3.connect(path) as connection:
            query = f"SELECT * FROM {self.project}_{view} ORDER BY entity_key, feature_name"
            found = connection.execute(query).fetchall()
        connection.close()
        return found

    def read(self, ids=("i0",), view=PAIR):
        references = [f"{view}:{name}" for name in VIEWS[view][2]]
        answer = self.store.get_online_features(references, [{schema.ITEM_ID: id_} for id_ in ids])
        return answer.to_dict()
