"""An emptied Redis is an error, not a store of users that nobody knows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from recsys_llm.retrieval.online import OnlineReader, open_reader
from recsys_llm.retrieval.online_redis import RedisReader
from recsys_llm.stores import RedisOnlineStore
from recsys_llm.stores.runs import emptied

if TYPE_CHECKING:
    import feast


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
        raise emptied(store.project, lost)


def checked_reader(store: feast.FeatureStore) -> OnlineReader:
    """Return the reader of a store, which notices an emptied one where the store has marks for that."""
    reader = open_reader(store)
    if isinstance(reader, RedisReader) and isinstance(store.provider.online_store, RedisOnlineStore):
        return RedisReader(reader.client, reader.layout, store.project)
    return reader
