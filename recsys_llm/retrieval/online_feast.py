"""Any online store, by Feast's public ``online_read``."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import feast
import numpy as np
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value as ValueProto

from recsys_llm.errors import StoreError
from recsys_llm.retrieval.online import NO_ROW, Meanwhile, Request, StoredRows
from recsys_llm.retrieval.service import View
from recsys_llm.timestamps import to_micros


class FeastReader:
    """Reads one view at a time, as Feast itself does."""

    def __init__(self, store: feast.FeatureStore) -> None:
        self.store = store

    def read(self, requests: Sequence[Request], meanwhile: Meanwhile = None) -> list[list[StoredRows]]:
        """Return for each request and view, what is stored of its entities."""
        return [[self._read(view, request.ids) for view in request.views] for request in requests]

    def close(self) -> None:
        """Do nothing: connections are Feast's own."""

    def _read(self, view: View, ids: Sequence[str]) -> StoredRows:
        names = [feature.name for feature in view.features]
        keys = [EntityKey(join_keys=[view.join_key], entity_values=[ValueProto(string_val=key)]) for key in ids]
        rows = self._online_read(view, keys, names) if keys else []
        if len(rows) != len(ids):
            kind = self.store.config.online_store.type
            raise StoreError(f"view {view.name}: expected {len(ids)} rows from {kind}, found {len(rows)}; ask again")
        return StoredRows(
            np.array([_micros(timestamp, values) for timestamp, values in rows], dtype=np.int64),
            {name: [_bytes(values, name) for _, values in rows] for name in names},
        )

    def _online_read(self, view: View, keys: list[EntityKey], names: list[str]) -> list[Any]:
        config = self.store.config
        try:
            # Stores add to the list of names.
            rows: list[Any] = self.store.provider.online_read(config, view.definition, keys, list(names))
        except Exception as error:  # each store raises what its own driver raises
            raise StoreError(
                f"view {view.name}: online store {config.online_store.type} failed: {type(error).__name__}: {error}; "
                "check that it is up, and that `feast apply` has been run"
            ) from error
        return rows


def _micros(timestamp: datetime | None, values: Any) -> int:
    if timestamp is None or values is None:
        return NO_ROW
    return to_micros(timestamp if timestamp.tzinfo else timestamp.replace(tzinfo=UTC))


def _bytes(values: dict[str, ValueProto] | None, name: str) -> bytes | None:
    return values[name].SerializeToString() if values and name in values else None
