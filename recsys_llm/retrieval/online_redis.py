"""Feast's Redis store, read by one pipelined HMGET for each entity: all views of an entity share a hash.

All that is private to Feast's layout is here; tests/retrieval/test_online_stores.py compares it with Feast's answers.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import feast
import numpy as np
from feast.infra.key_encoding_utils import serialize_entity_key_prefix
from feast.infra.online_stores.helpers import _mmh3, compute_versioned_name
from feast.protos.feast.types.Value_pb2 import ValueType
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from google.protobuf.timestamp_pb2 import Timestamp  # type: ignore[import-untyped]
from redis.exceptions import RedisError

from recsys_llm.errors import StoreError
from recsys_llm.retrieval.online import NO_ROW, Request, StoredRows
from recsys_llm.retrieval.service import View


class RedisReader:
    """Reads over the connection pool of Feast's own store: its TLS, password and database."""

    def __init__(self, store: feast.FeatureStore) -> None:
        self.config = store.config
        self.store = store

    def read(self, requests: Sequence[Request]) -> list[list[StoredRows]]:
        """Return for each request and view, what is stored of its entities; one round trip for all of them."""
        client = self.store.provider.online_store._get_client(self.config.online_store)
        fields = [[name for view in request.views for name in self._fields(view)] for request in requests]
        try:
            with client.pipeline(transaction=False) as pipe:
                for request, names in zip(requests, fields, strict=True):
                    for id_ in request.ids if names else ():
                        pipe.hmget(self._key(request.views[0], id_), names)
                replies = pipe.execute()
        except RedisError as error:
            raise StoreError(
                f"Redis: {type(error).__name__}: {error}; check that it is up and that online_store in "
                "feature_store.yaml names it"
            ) from error
        found, start = [], 0
        for request, names in zip(requests, fields, strict=True):
            end = start + (len(request.ids) if names else 0)
            found.append(self._split(request, replies[start:end]))
            start = end
        return found

    def close(self) -> None:
        """Do nothing: connections are Feast's own."""

    def _split(self, request: Request, replies: list[list[bytes | None]]) -> list[StoredRows]:
        columns = (
            list(zip(*replies, strict=True)) if replies else [()] * sum(len(v.features) + 1 for v in request.views)
        )
        found, start = [], 0
        for view in request.views:
            stamps: dict[bytes, int] = {}
            values = columns[start : start + len(view.features)]
            micros = np.full(len(request.ids), NO_ROW, dtype=np.int64)
            for row, raw in enumerate(columns[start + len(view.features)]):
                if raw:
                    if raw not in stamps:
                        stamps[raw] = _micros(raw, view, request.ids[row])
                    micros[row] = stamps[raw]
            names = [feature.name for feature in view.features]
            found.append(StoredRows(micros, {name: list(column) for name, column in zip(names, values, strict=True)}))
            start += len(view.features) + 1
        return found

    def _fields(self, view: View) -> list[Any]:
        """Return the hash fields of a view's features, its timestamp last."""
        name = compute_versioned_name(view.definition, self.config.registry.enable_online_feature_view_versioning)
        return [*(_mmh3(f"{name}:{feature.name}") for feature in view.features), f"_ts:{name}"]

    def _key(self, view: View, id_: str) -> bytes:
        """Return the key of an entity's hash; the same as Feast's ``_redis_key``, without a protobuf for each id."""
        prefix = serialize_entity_key_prefix([view.join_key], self.config.entity_key_serialization_version)
        encoded = id_.encode("utf-8")
        kind_and_length = struct.pack("<II", ValueType.STRING, len(encoded))
        project: bytes = self.config.project.encode("utf-8")
        return bytes(prefix) + kind_and_length + encoded + project


def _micros(raw: bytes, view: View, id_: str) -> int:
    try:
        stamp = Timestamp.FromString(raw)
    except DecodeError:
        raise StoreError(
            f"view {view.name}, {view.join_key}={id_!r}: expected a timestamp, found {raw[:32]!r}; materialise it again"
        ) from None
    return int(stamp.seconds) * 1_000_000 + int(stamp.nanos) // 1_000
