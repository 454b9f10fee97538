"""Feast's Redis store with limits: it fails in time, says when it was emptied, and keeps its password to itself."""

from __future__ import annotations

import asyncio
import re
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Literal, Self

from feast import Entity, FeatureView, RepoConfig
from feast.infra.online_stores.redis import RedisClient
from feast.infra.online_stores.redis import RedisOnlineStore as FeastRedisOnlineStore
from feast.infra.online_stores.redis import RedisOnlineStoreConfig as FeastRedisOnlineStoreConfig
from pydantic import ConfigDict, Field, StrictStr, field_validator, model_validator

from recsys_llm.errors import ConfigError, StoreError
from recsys_llm.redis_errors import REDIS_FAILED
from recsys_llm.registry_guard import guard_registries
from recsys_llm.stores import redis_client
from recsys_llm.stores.breaker import BREAKER_FAILURES, CircuitBreaker
from recsys_llm.stores.redis_connection import PROBE, TIMEOUT_MS
from recsys_llm.stores.redis_password import named_password
from recsys_llm.stores.redis_rows import write_rows
from recsys_llm.stores.runs import RunMarkers

guard_registries()  # Feast imports this module while it reads feature_store.yaml, before it opens the registry

_OURS = {"password": "password_env or password_file", "username": "username", "socket_timeout": "timeout_ms"}
_OURS |= {"socket_connect_timeout": "timeout_ms", "retry": "timeout_ms"}

_PART = re.compile(r"[\w.-]+(:\d{1,5})?|\w+=.*")
"""Between commas: a host with its port, or a setting."""

_BULK: ContextVar[bool] = ContextVar("recsys_llm_bulk_writes", default=False)


class RedisOnlineStoreConfig(FeastRedisOnlineStoreConfig):  # type: ignore[misc]
    """``online_store`` of feature_store.yaml: Feast's keys for Redis, and ours.

    The password is named, not given, so that nothing that shows or logs the configuration can show it.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid", hide_input_in_errors=True)

    type: Literal["recsys_llm.stores.RedisOnlineStore"] = "recsys_llm.stores.RedisOnlineStore"
    connection_string: StrictStr = "localhost:6379"
    """``host:port`` (several for a cluster or sentinels), ``db=0``, ``ssl=true``, ``ssl_ca_certs=/path``, ..."""
    client: RedisClient = RedisClient.redis
    """``redis``: GLIDE would go round timeouts and breaker."""
    username: str | None = None
    """ACL user; None: the default one."""
    password_env: str | None = None
    """Name of the environment variable that holds the password."""
    password_file: Path | None = None
    """File that holds the password, such as a secret that Docker mounts."""
    timeout_ms: int = Field(default=TIMEOUT_MS, ge=1, le=60_000)
    """Limit of a connect and of a wait for the server while reading. With its one retry, a request takes at most
    2.5 times as long."""
    write_timeout_ms: int = Field(default=5_000, ge=1, le=600_000)
    """Limit of a connect and of a wait for the server while materialising."""
    breaker_failures: int = Field(default=BREAKER_FAILURES, ge=1, le=1_000)
    """After so many failed requests in a row, only one at a time tries the server, the others fail at once."""
    allow_eviction: bool = False
    """Use a Redis that drops rows when it is full. False: the policy is asked for at each new connection, and again
    before a request where the last time was a second ago or more."""
    skip_dedup: bool = False
    """Feast's key to write without a look at the stored times; refused: the server compares the time of each row as it
    writes it, at no further round trip, and a row of the same time replaces the stored one anyway."""

    @field_validator("connection_string")
    @classmethod
    def _no_secret(cls, text: str) -> str:
        # No ValueError anywhere: pydantic would show the text, and so would redis-py what it can't read.
        if not all(_PART.fullmatch(part) for part in text.split(",")):
            raise ConfigError(
                "online_store: connection_string: expected host:port and name=value with commas in between, no URL; "
                "a password is named by password_env or password_file"
            )
        _, parameters = FeastRedisOnlineStore._parse_connection_string(text)
        for name, instead in _OURS.items():
            if name in parameters:
                raise ConfigError(f"online_store: connection_string: expected no {name}= in it; use the key {instead}")
        return text

    @field_validator("client")
    @classmethod
    def _only_redis_py(cls, client: RedisClient) -> RedisClient:
        if client != RedisClient.redis:
            raise ConfigError("online_store: expected client: redis, found glide, which would go round the timeouts")
        return client

    @field_validator("skip_dedup")
    @classmethod
    def _always_compared(cls, skip: bool) -> bool:
        if skip:
            raise ConfigError(
                "online_store: expected no skip_dedup, found true: the server compares the time of each row, and newer "
                "and equal ones win; remove the key"
            )
        return skip

    @model_validator(mode="after")
    def _one_password(self) -> Self:
        if self.password_env is not None and self.password_file is not None:
            raise ConfigError("online_store: expected password_env or password_file, found both; remove one")
        return self

    def password(self) -> str | None:
        """Return the password; None where none is named.

        Raises
        ------
        ConfigError
            The variable is not set, or the file can't be read.
        """
        return named_password(self.password_env, self.password_file, where="online_store")


class RedisOnlineStore(FeastRedisOnlineStore):  # type: ignore[misc]  # Feast ships no types
    """Feast's Redis store, in Feast's own layout, over guarded connections.

    Raises
    ------
    EvictingStoreError
        From any access: the server would drop rows when it is full.
    StoreError
        From writing: the server can't be reached, or refuses (as when it is full).
    """

    _client: Any = None
    _client_async: Any = None
    _writer: Any = None
    _breaker: CircuitBreaker | None = None

    def __init__(self) -> None:
        super().__init__()
        self._clients = threading.Lock()

    @property
    def breaker_state(self) -> str:
        """``closed`` or ``open``."""
        return "closed" if self._breaker is None else self._breaker.state

    @contextmanager
    def bulk_writes(self) -> Iterator[None]:
        """Use the longer timeouts of writing for all that this thread asks of the store within the block."""
        token = _BULK.set(True)
        try:
            yield
        finally:
            _BULK.reset(token)

    def runs(self, config: RepoConfig) -> RunMarkers:
        """Return the marks that show whether the store still holds what was published."""
        return RunMarkers(self._get_client(config.online_store), config.project)

    def begin_run(self, config: RepoConfig, view: str) -> str:
        """Return the identity of the store as the holder of ``view``: a new one if it was emptied since."""
        return str(self._answered(lambda: self.runs(config).begin(view, uuid.uuid4().hex)))

    def end_run(self, config: RepoConfig, view: str, run: str) -> None:
        """Let ``view`` be read from now on.

        Raises
        ------
        EmptiedStoreError
            The store was emptied since the run began.
        """
        self._answered(lambda: self.runs(config).end(view, run))

    def unpublished(self, config: RepoConfig, views: Sequence[str]) -> list[str]:
        """Return those of ``views`` that the store doesn't hold, as it would after a run that ended well."""
        return list(self._answered(lambda: self.runs(config).missing(views))) if views else []

    def server_info(self, config: RepoConfig) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return what a server says of its memory and of its work: ``INFO memory`` and ``INFO stats``.

        Raises
        ------
        StoreError
            It can't be reached, or evicts rows.
        """
        client = self._answered(lambda: self._get_client(config.online_store))
        node = client.get_random_node().redis_connection if hasattr(client, "get_random_node") else client
        return self._answered(lambda: node.info("memory")), self._answered(lambda: node.info("stats"))

    def online_write_batch(
        self, config: RepoConfig, table: FeatureView, data: Any, progress: Callable[[int], Any] | None
    ) -> None:
        """Write rows, each unless the server holds a newer one of its key; one of the same time replaces it.

        Streams deliver late, so a row that is older is no error: it is left out, told of by a warning, and counted
        (``recsys_llm_pushed_rows_total``). `feast push`, ``write_to_online_store`` and Feast's own engines write so.
        An ACL user needs SCRIPT LOAD and EVALSHA for it (on a cluster EVALSHA and EVAL).
        """
        with self.bulk_writes():
            self._answered(lambda: write_rows(self._get_client(config.online_store), config, table, data))
        if progress:
            progress(len(data))

    async def online_write_batch_async(
        self, config: RepoConfig, table: FeatureView, data: Any, progress: Callable[[int], Any] | None
    ) -> None:
        """Write rows as :meth:`online_write_batch` does, in a thread: one way to compare, whoever writes."""
        await asyncio.to_thread(self.online_write_batch, config, table, data, progress)

    def update(
        self,
        config: RepoConfig,
        tables_to_delete: Sequence[FeatureView],
        tables_to_keep: Sequence[FeatureView],
        entities_to_delete: Sequence[Entity],
        entities_to_keep: Sequence[Entity],
        partial: bool,
    ) -> None:
        """Remove the rows of views that are gone."""
        with self.bulk_writes():
            tables = (tables_to_delete, tables_to_keep, entities_to_delete, entities_to_keep)
            self._answered(lambda: super(RedisOnlineStore, self).update(config, *tables, partial))

    def delete_table(self, config: RepoConfig, table: FeatureView) -> None:
        """Remove the rows of a view."""
        super().delete_table(config, table)
        self.runs(config).forget(table.name)

    def teardown(self, config: RepoConfig, tables: Sequence[FeatureView], entities: Sequence[Entity]) -> None:
        """Remove the rows of all views."""
        with self.bulk_writes():
            self._answered(lambda: super(RedisOnlineStore, self).teardown(config, tables, entities))
            for table in tables:
                self.runs(config).forget(table.name)

    def _get_client(self, online_store_config: RedisOnlineStoreConfig) -> Any:
        """Return the client for reading, or that for writing inside :meth:`bulk_writes`."""
        kept = "_writer" if _BULK.get() else "_client"
        if getattr(self, kept) is None:
            # A cluster is asked for its nodes here, so not under the lock: threads that wait would wait in turn.
            opened = (self._open_writer if _BULK.get() else self._open_reader)(online_store_config)
            with self._clients:
                if getattr(self, kept) is None:
                    setattr(self, kept, opened)
                else:
                    opened.close()
        return getattr(self, kept)

    async def _get_client_async(self, online_store_config: RedisOnlineStoreConfig) -> Any:
        if self._client_async is None:
            self._client_async = redis_client.connect_async(online_store_config)
        return self._client_async

    def _open_reader(self, config: RedisOnlineStoreConfig) -> Any:
        timeout = config.timeout_ms / 1_000
        with self._clients:  # one breaker, also while a cluster can't be opened
            self._breaker = self._breaker or CircuitBreaker(config.breaker_failures, probe_seconds=PROBE * timeout)
        return redis_client.connect(config, self._breaker, timeout, limited=True)

    def _open_writer(self, config: RedisOnlineStoreConfig) -> Any:
        # With a breaker of its own: its patience says nothing of how long a lookup should wait.
        timeout = config.write_timeout_ms / 1_000
        breaker = CircuitBreaker(config.breaker_failures, probe_seconds=PROBE * timeout)
        return redis_client.connect(config, breaker, timeout, limited=False)

    def _answered(self, ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except REDIS_FAILED as error:
            # redis-py's message of a failed pipeline, and its traceback, show the row.
            reason = str(error).rpartition("of pipeline caused error: ")[2]
            raise StoreError(
                f"Redis: {type(error).__name__}: {reason}; check that it is up, has memory left, and that online_store "
                "in feature_store.yaml names it; what is stored already is kept"
            ) from None
