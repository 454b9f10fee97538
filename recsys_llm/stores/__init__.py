"""Online stores of our own, named by ``type:`` in feature_store.yaml."""

from recsys_llm.stores.redis_store import RedisOnlineStore, RedisOnlineStoreConfig

__all__ = ["RedisOnlineStore", "RedisOnlineStoreConfig"]
