"""From a Feast repository to a serving manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import feast
from feast.infra.online_stores.redis import RedisOnlineStore as FeastRedisOnlineStore
from feast.infra.online_stores.redis import RedisType

from recsys_llm.errors import ServiceError
from recsys_llm.passwords import is_secret
from recsys_llm.retrieval.client import FeatureClient
from recsys_llm.retrieval.feast_layout import is_redis, is_sqlite, redis_layout, sqlite_layout, sqlite_path
from recsys_llm.retrieval.serving import PASSWORD_KEYS, Manifest, write_manifest
from recsys_llm.stores import RedisOnlineStoreConfig
from recsys_llm.stores.breaker import BREAKER_FAILURES
from recsys_llm.stores.redis_connection import TIMEOUT_MS


def export_serving(client: FeatureClient, service: str, out: Path) -> Manifest:
    """Write what a ``LookupClient`` needs to read a service.

    Parameters
    ----------
    client
        Of the repository.
    service
        Feature service.
    out
        JSON file to write.

    Raises
    ------
    ServiceError
        The service is unknown or can't be read, or the online store is neither Redis nor sqlite.
    FingerprintError
        The service mixes vectors of two models.
    """
    config, resolved = client.store.config, client.resolve(service)
    if is_redis(config):
        store, layout = _redis(config), redis_layout
    elif is_sqlite(config):
        store, layout = {"type": "sqlite", "path": str(sqlite_path(config))}, sqlite_layout  # type: ignore[assignment]
    else:
        raise ServiceError(
            f"export-serving: expected an online store of type redis or sqlite, found {config.online_store.type}; "
            "serve it with FeatureClient"
        )
    manifest = Manifest(
        project=str(config.project),
        service=resolved,
        layouts={view.name: layout(config, view) for view in resolved.views},
        store=store,
        fingerprints=client.fingerprints(service),
        bridges=client.bridges(service),
    )
    write_manifest(out, manifest)
    return manifest


def _redis(config: feast.RepoConfig) -> dict[str, Any]:
    """Return how to reach the Redis of a repository, without what is secret."""
    online = config.online_store
    ours = isinstance(online, RedisOnlineStoreConfig)
    # Feast's own store has no limits: these are ours, but for what it holds.
    limits = {
        "timeout_ms": online.timeout_ms if ours else TIMEOUT_MS,
        "breaker_failures": online.breaker_failures if ours else BREAKER_FAILURES,
        "allow_eviction": online.allow_eviction if ours else True,
        "has_marks": ours,
    }
    nodes, options = FeastRedisOnlineStore._parse_connection_string(online.connection_string)
    if online.redis_type != RedisType.redis:
        # One address is not enough for it: LookupClient is handed a client.
        return {"type": "redis", "options": None, "secrets": [], **limits}
    secrets = sorted(filter(is_secret, options))
    public = {name: value for name, value in options.items() if name not in secrets}
    if ours and online.username is not None:
        public["username"] = online.username
    # Where our own store has its password from; LookupClient looks there too.
    named = {key: str(getattr(online, key)) for key in PASSWORD_KEYS if getattr(online, key, None) is not None}
    return {
        "type": "redis",
        "options": {"host": nodes[0]["host"], "port": int(nodes[0].get("port", 6379)), **public},
        "secrets": sorted({*secrets, *(["password"] if named else [])}),
        **named,
        **limits,
    }
