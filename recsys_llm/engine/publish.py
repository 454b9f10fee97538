"""Writing computed rows to Feast's online store."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import pyarrow as pa
from feast import FeatureView, RepoConfig
from feast.infra.online_stores.online_store import OnlineStore

from recsys_llm.engine.rows import OnlineWriter, Rows, Written
from recsys_llm.producers.hashing import HASH_BYTES
from recsys_llm.schema import CONTENT_HASH

_ROWS_PER_WRITE = 2048
"""Bounds what is in memory twice: 2,048 rows of 384 floats are 3 MB."""


def store_identity(config: Any, project: str) -> str:
    """Return a hash that names an online store: its settings (no secret can be read from it) and the project."""
    return blake2b(f"{project}\n{config.model_dump_json()}".encode(), digest_size=HASH_BYTES).hexdigest()


def open_writer(config: RepoConfig, store: OnlineStore, view: FeatureView) -> OnlineWriter:
    """Return the fastest writer for an online store.

    Sqlite stores with columns for vector search or filters are left to Feast's own writer.
    """
    from feast.infra.online_stores.redis import RedisOnlineStoreConfig
    from feast.infra.online_stores.sqlite import SqliteOnlineStoreConfig

    settings = config.online_store
    if isinstance(settings, RedisOnlineStoreConfig):
        from recsys_llm.engine.write_redis import RedisWriter

        return RedisWriter(config, store, view)
    if type(settings) is SqliteOnlineStoreConfig and not (
        settings.vector_enabled or settings.enable_openai_compatible_store
    ):
        from recsys_llm.engine.write_sqlite import SqliteWriter

        return SqliteWriter(config, view)
    from recsys_llm.engine.write_feast import FeastWriter

    return FeastWriter(config, store, view)


class OnlinePublisher:
    """Writes rows of one view to the online store.

    A row replaces one of its key that is older or of the same time (a corrected value); a newer one stays, so that a
    stream may write fresher rows at the same time.
    """

    def __init__(self, config: RepoConfig, store: OnlineStore, view: FeatureView) -> None:
        self._config = config
        self._view = view
        self._writer = open_writer(config, store, view)
        self._join_keys = {column.name: column.dtype.to_value_type() for column in view.entity_columns}
        self.written = Written()
        """What became of all rows so far."""

    def __call__(self, table: pa.Table) -> None:
        """Write all rows of ``table``, which has each key once, or raise."""
        columns = [name for name in table.column_names if name != CONTENT_HASH]
        for batch in table.select(columns).combine_chunks().to_batches(_ROWS_PER_WRITE):
            rows = Rows(self._view, batch, self._join_keys, self._config)
            self.written = self.written.plus(self._writer.write(rows))
