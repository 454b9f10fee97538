"""Stores of our own, named by ``type:`` in feature_store.yaml."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recsys_llm.stores.offline import DuckDBOfflineStore, DuckDBOfflineStoreConfig
    from recsys_llm.stores.redis_store import RedisOnlineStore, RedisOnlineStoreConfig

__all__ = ["DuckDBOfflineStore", "DuckDBOfflineStoreConfig", "RedisOnlineStore", "RedisOnlineStoreConfig"]

_HOMES = {
    "DuckDBOfflineStore": "offline",
    "DuckDBOfflineStoreConfig": "offline",
    "RedisOnlineStore": "redis_store",
    "RedisOnlineStoreConfig": "redis_store",
}


def __getattr__(name: str) -> Any:
    # LookupClient takes the guarded connections from here, and has no Feast; lookups need no DuckDB.
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
