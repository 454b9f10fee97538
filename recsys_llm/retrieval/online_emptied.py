"""An emptied Redis is an error, not a store of users that nobody knows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from recsys_llm.errors import EmptiedStoreError
from recsys_llm.retrieval.online import NO_ROW, Meanwhile, OnlineReader, Request, StoredRows, open_reader
from recsys_llm.schema import TAG
from recsys_llm.stores import RedisOnlineStore

if TYPE_CHECKING:
    import feast


class CheckedReader:
    """Reads over another reader, and takes "no such row" from an emptied Redis for an error.

    Where a view that recsys_llm computes has none of the rows asked for, one more round trip asks for its mark
    (:mod:`recsys_llm.stores.runs`).
    """

    def __init__(self, reader: OnlineReader, store: feast.FeatureStore) -> None:
        self.reader = reader
        self._store = store

    def read(self, requests: Sequence[Request], meanwhile: Meanwhile = None) -> list[list[StoredRows]]:
        """Return what is stored.

        Raises
        ------
        EmptiedStoreError
            Redis doesn't hold what was published.
        """
        found = self.reader.read(requests, meanwhile)
        empty = [
            view.name
            for request, stored in zip(requests, found, strict=True)
            for view, rows in zip(request.views, stored, strict=True)
            if request.ids and TAG in view.definition.tags and not (rows.timestamps != NO_ROW).any()
        ]
        require_published(self._store, empty)
        return found

    def close(self) -> None:
        """Close the other reader."""
        self.reader.close()


def require_published(store: feast.FeatureStore, views: Sequence[str]) -> None:
    """Refuse a store that lacks the marks of ``views``; only our Redis store has marks.

    Raises
    ------
    EmptiedStoreError
        Redis doesn't hold what was published.
    """
    online = store.provider.online_store
    lost = online.unpublished(store.config, views) if isinstance(online, RedisOnlineStore) else []
    if lost:
        raise EmptiedStoreError(
            f"Redis holds no finished run of {', '.join(lost)} in project {store.project}: it was emptied, restarted "
            "without its data, or is not filled yet; `feast materialize` fills it from the parts, or at once "
            f"`recsys-llm repair {lost[0]}`"
        )


def checked_reader(store: feast.FeatureStore) -> OnlineReader:
    """Return the reader of a store, which notices an emptied one where the store has marks for that."""
    reader = open_reader(store)
    return CheckedReader(reader, store) if isinstance(store.provider.online_store, RedisOnlineStore) else reader


def unchecked(reader: OnlineReader) -> OnlineReader:
    """Return the reader that a :class:`CheckedReader` reads over."""
    return reader.reader if isinstance(reader, CheckedReader) else reader
