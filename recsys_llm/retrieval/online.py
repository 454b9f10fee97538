"""Online rows of any Feast store, as blocks: the same decode, ttl and statuses for all.

Feast doesn't enforce a view's ttl online, so it is checked here: a row older than the ttl is STALE, and its values are
blanked, as a training set's would be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from recsys_llm.retrieval.blocks import EntityBlock, Status
from recsys_llm.retrieval.columns import Column, blank
from recsys_llm.retrieval.decode import decode
from recsys_llm.retrieval.service import View

if TYPE_CHECKING:
    import feast

NO_ROW = 0
"""Timestamp of a row that isn't there: Redis has no other way to say so than the epoch."""


@dataclass(frozen=True)
class Request:
    """Rows to read: these entities, in all of these views."""

    entity: str
    views: tuple[View, ...]
    ids: tuple[str, ...]
    """Distinct."""


@dataclass(frozen=True, eq=False)
class StoredRows:
    """What a store holds of n entities in one view."""

    timestamps: npt.NDArray[np.int64]
    """int64 (n,), microseconds since the epoch; :data:`NO_ROW` where there is no row."""
    values: dict[str, list[bytes | None]]
    """Feature to n serialised ``ValueProto``; None where there is none."""


class OnlineReader(Protocol):
    """One online store."""

    def read(self, requests: Sequence[Request]) -> list[list[StoredRows]]:
        """Return for each request and view, what is stored of its entities, in order.

        Raises
        ------
        StoreError
            The store can't be reached or refuses.
        """
        ...

    def close(self) -> None:
        """Close what was opened for reading."""
        ...


def open_reader(store: feast.FeatureStore) -> OnlineReader:
    """Return the fastest reader for the online store of ``store``."""
    from feast.infra.online_stores.redis import RedisOnlineStoreConfig
    from feast.infra.online_stores.sqlite import SqliteOnlineStoreConfig

    config = store.config.online_store
    if type(config) is SqliteOnlineStoreConfig:
        from recsys_llm.retrieval.online_sqlite import SqliteReader

        return SqliteReader(store)
    if isinstance(config, RedisOnlineStoreConfig):
        from recsys_llm.retrieval.online_redis import RedisReader

        return RedisReader(store)
    from recsys_llm.retrieval.online_feast import FeastReader

    return FeastReader(store)


def block(request: Request, rows: Sequence[StoredRows], now: int) -> EntityBlock:
    """Decode what was read.

    Parameters
    ----------
    request
        What was asked for.
    rows
        One for each of its views.
    now
        Microseconds since the epoch; rows whose timestamp + ttl is before it are stale.

    Raises
    ------
    StoreError
        The store holds bytes that are no value of the feature.
    """
    columns: dict[str, Column] = {}
    status: dict[str, npt.NDArray[np.uint8]] = {}
    timestamps: dict[str, npt.NDArray[np.int64]] = {}
    for view, stored in zip(request.views, rows, strict=True):
        absent = stored.timestamps == NO_ROW
        stale = ~absent & (stored.timestamps + view.ttl < now) if view.ttl else np.zeros_like(absent)
        states = np.full(len(absent), Status.PRESENT, dtype=np.uint8)
        states[absent], states[stale] = Status.MISSING, Status.STALE
        for feature in view.features:
            decoded = decode(stored.values[feature.name], view, feature, request.ids)
            columns[feature.column] = blank(decoded, absent | stale)
        status[view.name] = states
        timestamps[view.name] = stored.timestamps
    return EntityBlock(request.entity, request.ids, columns, status, timestamps)
