"""The item caches of one client, by service."""

from __future__ import annotations

from collections.abc import Mapping

from recsys_llm.retrieval.item_cache import CacheSettings, CacheSource, CacheStats, ItemCache, SilentSource
from recsys_llm.retrieval.online import OnlineReader
from recsys_llm.retrieval.online_redis import RedisReader
from recsys_llm.retrieval.redis_tracking import TrackedSource, can_track
from recsys_llm.retrieval.service import Service
from recsys_llm.schema import ITEM


class ItemCaches:
    """One cache for each service that is read; rows outlive a refresh of the registry that changes nothing."""

    def __init__(self, settings: CacheSettings) -> None:
        self._settings = settings
        self._kept: dict[str, tuple[Service, ItemCache]] = {}
        self._closed = (0, 0)

    def of(self, service: Service, reader: OnlineReader, fingerprints: Mapping[str, str | None]) -> ItemCache:
        """Return the cache of a service's items, as of these models."""
        made = {view.name: fingerprints.get(view.name) for view in service.of(ITEM)}
        if service.name in self._kept:
            known, cache = self._kept[service.name]
            if known.of(ITEM) == service.of(ITEM) and cache.fingerprints == made:
                return cache
            self._close(cache)
        cache = ItemCache(self._settings, self._source(reader), made)
        self._kept[service.name] = service, cache
        return cache

    def stats(self, service: str) -> CacheStats:
        """Return what the cache of a service has done; nothing before the first lookup."""
        return self._kept[service][1].stats() if service in self._kept else CacheStats()

    def totals(self) -> tuple[int, int]:
        """Return hits and misses of all of them, also of those that are closed."""
        found = [cache.stats() for _, cache in list(self._kept.values())]
        hits, misses = self._closed
        return hits + sum(stats.hits for stats in found), misses + sum(stats.misses for stats in found)

    def close(self) -> None:
        """Forget all rows."""
        while self._kept:
            _, (_, cache) = self._kept.popitem()
            self._close(cache)

    def _close(self, cache: ItemCache) -> None:
        cache.close()
        hits, misses = self._closed
        stats = cache.stats()
        self._closed = (hits + stats.hits, misses + stats.misses)

    def _source(self, reader: OnlineReader) -> CacheSource:
        if self._settings.coherent and isinstance(reader, RedisReader) and can_track(reader.client()):
            return TrackedSource(reader)
        return SilentSource(reader)
