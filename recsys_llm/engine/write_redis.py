"""Computed rows for Redis, each compared and set on the server."""

from __future__ import annotations

from feast import FeatureView, RepoConfig
from feast.infra.online_stores.helpers import compute_versioned_name
from feast.infra.online_stores.redis import RedisOnlineStore
from google.protobuf.timestamp_pb2 import Timestamp  # type: ignore[import-untyped]

from recsys_llm.engine.rows import Rows, Written
from recsys_llm.errors import StoreError
from recsys_llm.redis_errors import REDIS_FAILED
from recsys_llm.stores.compare_and_set import compare_and_set, counted


class RedisWriter:
    """Writes over Feast's own client: its TLS, password, database and cluster."""

    def __init__(self, config: RepoConfig, store: RedisOnlineStore, view: FeatureView) -> None:
        self._config = config
        self._store = store
        self._view = view

    def write(self, rows: Rows) -> Written:
        """Write rows, each unless Redis holds a newer one; an expiry starts anew with each row that is written.

        Raises
        ------
        StoreError
            Redis failed, or refuses scripts.
        """
        name = compute_versioned_name(self._view, self._config.registry.enable_online_feature_view_versioning)
        project = self._config.project.encode("utf-8")
        keys = [key + project for key in rows.keys]
        values = list(zip(map(_stamp, rows.micros.tolist()), *rows.values.values(), strict=True))
        seconds_to_live = self._config.online_store.key_ttl_seconds or 0
        try:
            client = self._store._get_client(self._config.online_store)
            return counted(compare_and_set(client, name, list(rows.values), keys, values, seconds_to_live))
        except REDIS_FAILED as error:
            raise StoreError(
                f"view {self._view.name}: Redis: {type(error).__name__}: {error}; check that it is up, has memory "
                "left, and lets this user run SCRIPT LOAD and EVALSHA (on a cluster EVAL); then materialise again"
            ) from error


def _stamp(micros: int) -> bytes:
    seconds, rest = divmod(micros, 1_000_000)
    stamp: bytes = Timestamp(seconds=seconds, nanos=1_000 * rest).SerializeToString()
    return stamp
