"""Lookups from a serving manifest: with numpy, redis and hiredis alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recsys_llm import timestamps as clock
from recsys_llm.errors import ServiceError
from recsys_llm.retrieval.caches import ItemCaches
from recsys_llm.retrieval.item_cache import CacheSettings, CacheStats
from recsys_llm.retrieval.lookup import Lookup
from recsys_llm.retrieval.observer import LookupObserver
from recsys_llm.retrieval.online import OnlineReader
from recsys_llm.retrieval.online_client import OnlineClient
from recsys_llm.retrieval.service import Service
from recsys_llm.retrieval.serving import read_manifest

if TYPE_CHECKING:
    from recsys_llm.stores.breaker import CircuitBreaker


class LookupClient(OnlineClient):
    """Reads one feature service as ``FeatureClient.lookup`` does, without Feast: it is up in a fraction of a second.

    The code that reads is the same, and so are the answers. Export the manifest again when a service is applied anew.
    Safe to use from several threads.

    Parameters
    ----------
    manifest
        File that `recsys-llm export-serving` wrote.
    redis_options
        Of ``redis.Redis``, in place of or beside those in the manifest (by default one retry, and the store's
        ``timeout_ms`` as ``socket_timeout`` and ``socket_connect_timeout``): the password, which it doesn't hold.
        Without one here, it is read where the manifest says: ``password_env`` or ``password_file`` of
        feature_store.yaml. A request ends within 2.5 times ``socket_timeout``, its retry included; after
        ``breaker_failures`` failures in a row one request at a time tries the server; one that evicts is refused, as
        the repository's store does it.
    redis
        Instead: a client that is open already, such as one of a cluster. Its time limits are its own; an emptied
        Redis is noticed all the same.
    now
        The clock that ttl is measured with.
    item_cache
        Keep rows of items in this process between lookups; None: read them each time.
    observer
        Told of every lookup, such as ``recsys_llm.metrics.LookupMetrics()``.

    Raises
    ------
    ConfigError
        The manifest is missing, was altered or is of another format, or the Redis needs a password that is not given.

    Examples
    --------
    ::

        client = LookupClient("serving.json", redis_options={"password": os.environ["REDIS_PASSWORD"]})
        batch = client.lookup("42", ["7", "9"])
    """

    def __init__(
        self,
        manifest: Path | str,
        *,
        redis_options: Mapping[str, Any] | None = None,
        redis: Any = None,
        now: Callable[[], datetime] = clock.now,
        item_cache: CacheSettings | None = None,
        observer: LookupObserver | None = None,
    ) -> None:
        self._manifest = read_manifest(Path(manifest))
        self._redis = redis
        self._owns_redis = redis is None
        self._breaker: CircuitBreaker | None = None
        if self._manifest.store["type"] == "redis" and redis is None:
            from recsys_llm.retrieval.serving_redis import connect

            self._redis, self._breaker = connect(self._manifest, redis_options or {}, Path(manifest))
        self._reader = self._open()
        made = self._manifest
        self._caches = ItemCaches(item_cache) if item_cache is not None else None
        cache = self._caches.of(made.service, self._reader, made.fingerprints) if self._caches is not None else None
        self._only = Lookup(made.service, self._reader, now, made.fingerprints, made.bridges, lambda _: None, cache)
        self._observer = observer
        if observer is not None:
            observer.watch(self)

    def resolve(self, service: str | None = None) -> Service:
        """Return what is read.

        Raises
        ------
        ServiceError
            The manifest is of another service.
        """
        if service not in (None, self._only.service.name):
            raise ServiceError(
                f"service {service!r}: the manifest is of {self._only.service.name!r}; export one of {service!r}"
            )
        return self._only.service

    def fingerprints(self, service: str | None = None) -> dict[str, str | None]:
        """Return the fingerprint of the model behind each view, as of the export; None where none was known."""
        self.resolve(service)
        return dict(self._manifest.fingerprints)

    def bridges(self, service: str | None = None) -> dict[str, str]:
        """Return the fingerprint that each bridged view stands in for, as of the export."""
        self.resolve(service)
        return dict(self._manifest.bridges)

    def cache_stats(self, service: str | None = None) -> CacheStats:
        """Return hits, misses and sizes of the item cache; zeros without one."""
        name = self.resolve(service).name
        return self._caches.stats(name) if self._caches is not None else CacheStats()

    @property
    def project(self) -> str:
        """Feast's project, as of the export."""
        return self._manifest.project

    @property
    def breaker_state(self) -> str:
        """Of the circuit breaker: ``closed`` or ``open``; ``closed`` for sqlite, and a client that was handed over."""
        return "closed" if self._breaker is None else self._breaker.state

    def cache_totals(self) -> tuple[int, int]:
        """Return hits and misses of the item caches of all services."""
        return self._caches.totals() if self._caches is not None else (0, 0)

    def close(self) -> None:
        """Close connections that the client opened itself."""
        if self._caches is not None:
            self._caches.close()
        self._reader.close()
        if self._owns_redis and self._redis is not None:
            self._redis.close()

    def _lookup(self, service: str | None) -> Lookup:
        self.resolve(service)
        return self._only

    def _open(self) -> OnlineReader:
        layouts: Any = self._manifest.layouts
        if self._manifest.store["type"] == "sqlite":
            from recsys_llm.retrieval.online_sqlite import SqliteReader

            return SqliteReader(Path(self._manifest.store["path"]), lambda view: layouts[view.name])
        from recsys_llm.retrieval.online_redis import RedisReader

        project = self._manifest.project if self._manifest.store["has_marks"] else None
        return RedisReader(lambda: self._redis, lambda view: layouts[view.name], project)
