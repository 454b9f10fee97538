"""The Redis of a serving manifest, under the limits of our store: with redis-py alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from redis import Redis

from recsys_llm.errors import ConfigError
from recsys_llm.retrieval.serving import PASSWORD_KEYS, Manifest
from recsys_llm.stores.breaker import CircuitBreaker
from recsys_llm.stores.redis_connection import PROBE, guarded, one_retry
from recsys_llm.stores.redis_password import named_password


def connect(manifest: Manifest, given: Mapping[str, Any], file: Path) -> tuple[Redis, CircuitBreaker]:
    """Return a client whose connections are guarded, and its breaker; nothing is sent yet.

    Parameters
    ----------
    given
        Options of ``redis.Redis``, in place of or beside those of the manifest. The limit of a whole request follows
        its ``socket_timeout``.
    file
        The manifest, for messages.

    Raises
    ------
    ConfigError
        One address isn't enough, a secret is missing, or a pool is given.
    """
    store = manifest.store
    if store["options"] is None:
        raise ConfigError(f"{file}: the Redis is a cluster or has sentinels; hand over a client with redis=...")
    if "connection_pool" in given:
        raise ConfigError(
            f"{file}: redis_options: expected no connection_pool, whose connections would lack the limits; hand over "
            "a client with redis=..."
        )
    seconds = store["timeout_ms"] / 1_000
    limits = {"socket_timeout": seconds, "socket_connect_timeout": seconds, "retry": one_retry()}
    options = {**limits, **store["options"], **_secrets(store, given, file), **given}
    client = Redis(**options)
    timeout = options["socket_timeout"]
    breaker = CircuitBreaker(store["breaker_failures"], probe_seconds=PROBE * (seconds if timeout is None else timeout))
    # Redis() has chosen between TCP, TLS and a Unix socket; no connection has been made yet.
    pool = client.connection_pool
    pool.connection_class = guarded(
        pool.connection_class, breaker, timeout=timeout, limited=True, allow_eviction=store["allow_eviction"]
    )
    return client, breaker


def _secrets(store: Mapping[str, Any], given: Mapping[str, Any], file: Path) -> dict[str, str]:
    """Return what the manifest leaves out and nobody gave: the password, from where the repository's store has it.

    Raises
    ------
    ConfigError
        A secret is missing.
    """
    missing = [name for name in store["secrets"] if name not in given]
    if missing == ["password"]:
        variable, secret = (store.get(key) for key in PASSWORD_KEYS)
        where = f"{file}: without redis_options={{'password': ...}}"
        password = named_password(variable, None if secret is None else Path(secret), where=where)
        if password is not None:
            return {"password": password}
    if missing:
        raise ConfigError(
            f"{file}: the Redis needs {', '.join(missing)}, which a manifest never holds; give "
            f"redis_options={{{missing[0]!r}: ...}}"
        )
    return {}
