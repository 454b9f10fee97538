"""Any other online store: Feast's own conversion and ``online_write_batch``."""

from __future__ import annotations

from feast import FeatureView, RepoConfig
from feast.infra.online_stores.online_store import OnlineStore

# Private to Feast, so only used here.
from feast.utils import _convert_arrow_to_proto

from recsys_llm.engine.rows import Rows, Written


class FeastWriter:
    """Leaves to the store what it does with a row that is older than its own."""

    def __init__(self, config: RepoConfig, store: OnlineStore, view: FeatureView) -> None:
        self._config = config
        self._store = store
        self._view = view

    def write(self, rows: Rows) -> Written:
        """Write all rows; they count as newer, since the store doesn't tell."""
        data = _convert_arrow_to_proto(rows.batch, self._view, dict(rows.join_keys))
        self._store.online_write_batch(self._config, self._view, data, progress=None)
        return Written(newer=len(rows))
