"""A materialisation, as the online store sees it: it begins, it fills a view, and only then may the view be read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from feast import RepoConfig
from feast.infra.online_stores.online_store import OnlineStore

from recsys_llm.engine.publish import store_identity
from recsys_llm.stores import RedisOnlineStore


@contextmanager
def online_run(store: OnlineStore, config: RepoConfig, view: str) -> Iterator[str]:
    """Publish ``view`` within the block; what is handed out names the store for the ledger.

    Our Redis store has a name of its own for each view, which goes when its data goes: an emptied one is another store,
    and is given all rows. Any other store is named by its settings.

    Raises
    ------
    StoreError
        Redis can't be reached, evicts rows, or was emptied in the meantime.
    """
    if not isinstance(store, RedisOnlineStore):
        yield store_identity(config.online_store, config.project)
        return
    with store.bulk_writes():
        run = store.begin_run(config, view)
        yield run
        store.end_run(config, view, run)
