"""Writing computed rows to Feast's online store."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import pyarrow as pa
from feast import FeatureView, RepoConfig
from feast.infra.online_stores.online_store import OnlineStore
from feast.infra.registry.base_registry import BaseRegistry

# Private to Feast, so only used here; the parity test of the engine reads back what it wrote.
from feast.utils import _convert_arrow_to_proto

from recsys_llm.producers.hashing import HASH_BYTES
from recsys_llm.schema import CONTENT_HASH

_ROWS_PER_WRITE = 2048
"""Bounds the protobuf objects in memory: 2,048 rows of 384 floats are about 60 MB."""


def store_identity(config: Any, project: str) -> str:
    """Return a hash that names an online store: its settings (no secret can be read from it) and the project."""
    return blake2b(f"{project}\n{config.model_dump_json()}".encode(), digest_size=HASH_BYTES).hexdigest()


class OnlinePublisher:
    """Writes rows of one view to the online store.

    The pipeline hands over each key once, and no row that is older than one it has published; so nothing is read
    back. On Redis ``skip_dedup: true`` in feature_store.yaml saves Feast's own read and lets a corrected value
    replace one of the same time.
    """

    def __init__(self, config: RepoConfig, store: OnlineStore, registry: BaseRegistry, view: FeatureView) -> None:
        self._config = config
        self._store = store
        self._view = view
        entities = [registry.get_entity(name, config.project) for name in view.entities]
        self._join_keys = {entity.join_key: entity.value_type for entity in entities}

    def __call__(self, table: pa.Table) -> None:
        """Write all rows of ``table``, or raise."""
        # One batch at a time: Feast's conversion reads only the first chunk of a table.
        for batch in table.drop_columns([CONTENT_HASH]).combine_chunks().to_batches(_ROWS_PER_WRITE):
            rows = _convert_arrow_to_proto(batch, self._view, self._join_keys)
            self._store.online_write_batch(self._config, self._view, rows, progress=None)
