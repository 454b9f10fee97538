"""Stores of our own, named by ``type:`` in feature_store.yaml."""

from typing import Any

from recsys_llm.registry_guard import guard_registries
from recsys_llm.stores.redis_store import RedisOnlineStore, RedisOnlineStoreConfig

__all__ = ["DuckDBOfflineStore", "DuckDBOfflineStoreConfig", "RedisOnlineStore", "RedisOnlineStoreConfig"]

guard_registries()  # Feast imports this module while it reads feature_store.yaml, before it opens the registry


def __getattr__(name: str) -> Any:
    """Import DuckDB's store when it is asked for: lookups need none."""
    if name in ("DuckDBOfflineStore", "DuckDBOfflineStoreConfig"):
        from recsys_llm.stores import offline

        return getattr(offline, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
