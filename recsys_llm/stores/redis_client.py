"""Clients of redis-py for what ``online_store`` names: one server, a cluster, or the master that sentinels know."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from feast.infra.online_stores.redis import RedisOnlineStore as FeastRedisOnlineStore
from feast.infra.online_stores.redis import RedisType
from redis import Redis
from redis import asyncio as redis_asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import FullJitterBackoff, NoBackoff
from redis.cluster import ClusterNode
from redis.connection import Connection, ConnectionPool, SSLConnection
from redis.retry import Retry
from redis.sentinel import Sentinel

from recsys_llm.stores.breaker import CircuitBreaker
from recsys_llm.stores.redis_cluster import SpannedCluster
from recsys_llm.stores.redis_connection import BUDGET, PAUSE_SECONDS, guarded, one_retry
from recsys_llm.stores.redis_sentinel import AskedOfSentinels, AskedOfSentinelsOverTLS, spanned

if TYPE_CHECKING:
    from recsys_llm.stores.redis_store import RedisOnlineStoreConfig


def connect(config: RedisOnlineStoreConfig, breaker: CircuitBreaker, timeout: float, *, limited: bool) -> Any:
    """Return a client whose connections are guarded; nothing is sent yet, but to a cluster.

    Parameters
    ----------
    timeout
        Of each connect and each wait, in seconds.
    limited
        Whether a request with its retry has a limit too.
    """
    nodes, settings = _settings(config, timeout)
    tls = bool(settings.pop("ssl", False))
    base: type[Connection] = SSLConnection if tls else Connection
    if config.redis_type == RedisType.redis_sentinel:
        base = AskedOfSentinelsOverTLS if tls else AskedOfSentinels
    connection_class = guarded(base, breaker, timeout=timeout, limited=limited, allow_eviction=config.allow_eviction)
    retry = one_retry()
    if config.redis_type == RedisType.redis_cluster:
        # Only with a URL does redis-py take the class of a node's connections.
        host, port = nodes[0]
        return SpannedCluster(
            BUDGET * timeout if limited else None,
            url=f"redis://{host}:{port}",
            startup_nodes=[ClusterNode(host, port) for host, port in nodes],  # type: ignore[no-untyped-call]
            connection_class=connection_class,
            retry=retry,
            **settings,
        )
    if config.redis_type == RedisType.redis_sentinel:
        sentinel: Any = Sentinel([], retry=retry, **settings)  # type: ignore[no-untyped-call]
        sentinel.sentinels = _sentinels(nodes, settings, timeout, tls=tls)
        return sentinel.master_for(config.sentinel_master, connection_class=connection_class)
    host, port = nodes[0]
    pool = ConnectionPool(connection_class=connection_class, host=host, port=port, retry=retry, **settings)
    return Redis(connection_pool=pool)


def _sentinels(nodes: list[tuple[str, int]], settings: dict[str, Any], timeout: float, *, tls: bool) -> list[Any]:
    """Return a client of each sentinel; they are asked one after the other, so they share the time of one wait."""
    kept = {name: value for name, value in settings.items() if name.startswith(("socket_", "ssl_"))}
    kept |= dict.fromkeys(("socket_timeout", "socket_connect_timeout"), timeout / len(nodes))
    kept |= {"connection_class": spanned(tls=tls), "retry": Retry(NoBackoff(), 0)}
    return [Redis(connection_pool=ConnectionPool(host=host, port=port, **kept)) for host, port in nodes]


def connect_async(config: RedisOnlineStoreConfig) -> Any:
    """Return a client for Feast's own ``online_read_async``: timeouts and the retry, but no breaker."""
    nodes, settings = _settings(config, config.timeout_ms / 1_000)
    settings["retry"] = AsyncRetry(FullJitterBackoff(cap=PAUSE_SECONDS, base=PAUSE_SECONDS), 1)
    if config.redis_type == RedisType.redis_cluster:
        startup = [redis_asyncio.cluster.ClusterNode(host, port) for host, port in nodes]
        return redis_asyncio.RedisCluster(startup_nodes=startup, **settings)
    if config.redis_type == RedisType.redis_sentinel:
        sentinel: Any = redis_asyncio.Sentinel(nodes, **settings)  # type: ignore[no-untyped-call]
        return sentinel.master_for(config.sentinel_master)
    host, port = nodes[0]
    return redis_asyncio.Redis(host=host, port=port, **settings)


def _settings(config: RedisOnlineStoreConfig, timeout: float) -> tuple[list[tuple[str, int]], dict[str, Any]]:
    """Return hosts and ports, and what redis-py takes as keywords."""
    nodes, settings = FeastRedisOnlineStore._parse_connection_string(config.connection_string)
    settings |= {"socket_timeout": timeout, "socket_connect_timeout": timeout}
    password = config.password()
    if password is not None:
        settings["password"] = password
    if config.username is not None:
        settings["username"] = config.username
    return [(node["host"], int(node.get("port", 6379))) for node in nodes], settings
