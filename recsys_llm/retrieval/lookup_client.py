"""Lookups from a serving manifest: with numpy, redis and hiredis alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from recsys_llm import timestamps as clock
from recsys_llm.errors import ConfigError, ServiceError
from recsys_llm.retrieval.caches import ItemCaches
from recsys_llm.retrieval.item_cache import CacheSettings, CacheStats
from recsys_llm.retrieval.lookup import Lookup
from recsys_llm.retrieval.observer import LookupObserver
from recsys_llm.retrieval.online import OnlineReader
from recsys_llm.retrieval.online_client import OnlineClient
from recsys_llm.retrieval.service import Service
from recsys_llm.retrieval.serving import PASSWORD_KEYS, Manifest, read_manifest

_PAUSE_SECONDS = 0.02
"""At most, before the retry."""


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
        feature_store.yaml.
    redis
        Instead: a client that is open already, such as one of a cluster.
    now
        The clock that ttl is measured with.
    item_cache
        Keep rows of items in this process between lookups; None: read them each time.
    observer
        Told of every lookup, such as ``recsys_llm.metrics.LookupMetrics()``.

    Raises
    ------
    ConfigError
        The manifest is missing or was altered, or the Redis needs a password that is not given.

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
        if self._manifest.store["type"] == "redis" and redis is None:
            self._redis = _connect(self._manifest, dict(redis_options or {}), Path(manifest))
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

        return RedisReader(lambda: self._redis, lambda view: layouts[view.name])


def _connect(manifest: Manifest, given: dict[str, Any], file: Path) -> Any:
    from redis import Redis
    from redis.backoff import FullJitterBackoff
    from redis.retry import Retry

    options = manifest.store["options"]
    if options is None:
        raise ConfigError(f"{file}: the Redis is a cluster or has sentinels; hand over a client with redis=...")
    given = {**_named_password(manifest), **given}
    missing = [name for name in manifest.store["secrets"] if name not in given]
    if missing:
        raise ConfigError(
            f"{file}: the Redis needs {', '.join(missing)}, which a manifest never holds; give "
            f"redis_options={{{missing[0]!r}: ...}}"
            + "".join(
                f", or put it where {key} says: {manifest.store[key]}" for key in PASSWORD_KEYS if key in manifest.store
            )
        )
    seconds = manifest.store["timeout_ms"] / 1_000
    limits = {
        "socket_timeout": seconds,
        "socket_connect_timeout": seconds,
        "retry": Retry(FullJitterBackoff(cap=_PAUSE_SECONDS, base=_PAUSE_SECONDS), 1),
    }
    return Redis(**{**limits, **options, **given})


def _named_password(manifest: Manifest) -> dict[str, str]:
    """Return the password from where the store of the repository has it; nothing where that is not here."""
    variable, file = (manifest.store.get(key) for key in PASSWORD_KEYS)
    if variable is not None and os.environ.get(variable):
        return {"password": os.environ[variable]}
    if file is not None and Path(file).is_file():
        return {"password": Path(file).read_text(encoding="utf-8").rstrip("\r\n")}
    return {}
