"""Feast's sqlite store, read by its own tables: one query for each entity.

All that is private to Feast's layout is here; tests/retrieval/test_online_stores.py compares it with Feast's answers.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import feast
import numpy as np
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.infra.online_stores.helpers import compute_table_id
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value as ValueProto

from recsys_llm.errors import StoreError
from recsys_llm.retrieval.online import NO_ROW, Request, StoredRows
from recsys_llm.retrieval.service import View
from recsys_llm.timestamps import to_micros

MAX_KEYS = 10_000
"""Entities per query; sqlite takes 32,766 parameters."""


class SqliteReader:
    """Reads without Feast's connection, so that threads don't share one."""

    def __init__(self, store: feast.FeatureStore) -> None:
        path = Path(store.config.online_store.path)
        self.path = path if path.is_absolute() else Path(store.config.repo_path or ".").resolve() / path
        self.config = store.config
        self._local = threading.local()
        self._opened: list[sqlite3.Connection] = []

    def read(self, requests: Sequence[Request]) -> list[list[StoredRows]]:
        """Return for each request and view, what is stored of its entities."""
        return [self._read(request) if request.views else [] for request in requests]

    def close(self) -> None:
        """Close the connections of all threads."""
        while self._opened:
            self._opened.pop().close()
        self._local = threading.local()

    def _read(self, request: Request) -> list[StoredRows]:
        position = {self._key(request.views[0], id_): row for row, id_ in enumerate(request.ids)}
        n = len(request.ids)
        found = [
            StoredRows(np.full(n, NO_ROW, dtype=np.int64), {feature.name: [None] * n for feature in view.features})
            for view in request.views
        ]
        stamps: dict[Any, int] = {}
        keys = list(position)
        for start in range(0, n, MAX_KEYS):
            for number, key, name, value, stamp in self._query(request.views, keys[start : start + MAX_KEYS]):
                rows, row = found[number], position[key]
                if stamp not in stamps:
                    stamps[stamp] = self._micros(stamp, request.views[number], request.ids[row])
                rows.values[name][row] = value
                rows.timestamps[row] = stamps[stamp]
        return found

    def _query(self, views: Sequence[View], keys: list[bytes]) -> list[Any]:
        marks = ", ".join(f"?{number + 1}" for number in range(len(keys)))
        names = [feature.name for view in views for feature in view.features]
        arms, used = [], len(keys)
        for number, view in enumerate(views):
            wanted = ", ".join(f"?{used + place + 1}" for place in range(len(view.features)))
            used += len(view.features)
            arms.append(
                f"SELECT {number}, entity_key, feature_name, value, event_ts FROM {self._table(view)} "
                f"WHERE entity_key IN ({marks}) AND feature_name IN ({wanted})"
            )
        try:
            return self._connection().execute(" UNION ALL ".join(arms), [*keys, *names]).fetchall()
        except sqlite3.Error as error:
            raise StoreError(
                f"online store {self.path}: {error}; expected the tables of {', '.join(view.name for view in views)}: "
                "run `feast apply` and `feast materialize`"
            ) from error

    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            # Read-only: a missing file is an error, not a new database.
            connection = sqlite3.connect(f"{self.path.as_uri()}?mode=ro", uri=True, check_same_thread=False)
            self._local.connection = connection
            self._opened.append(connection)
        return connection

    def _table(self, view: View) -> str:
        name: str = compute_table_id(
            self.config.project, view.definition, self.config.registry.enable_online_feature_view_versioning
        )
        return '"' + name.replace('"', '""') + '"'

    def _key(self, view: View, id_: str) -> bytes:
        key: bytes = serialize_entity_key(
            EntityKey(join_keys=[view.join_key], entity_values=[ValueProto(string_val=id_)]),
            entity_key_serialization_version=self.config.entity_key_serialization_version,
        )
        return key

    def _micros(self, stamp: Any, view: View, id_: str) -> int:
        """Undo what Feast does: it stores whole seconds of a UTC time taken for local time."""
        if not isinstance(stamp, int):
            raise StoreError(
                f"view {view.name}, {view.join_key}={id_!r}: expected a timestamp in whole seconds in {self.path}, "
                f"found {stamp!r}; materialise the view again"
            )
        return to_micros(datetime.fromtimestamp(stamp).replace(tzinfo=UTC))
