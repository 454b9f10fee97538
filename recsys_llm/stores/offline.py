"""Feast's DuckDB offline store under a name of ours, which doesn't complain of views that are yet to be computed.

Feast imports the class that ``offline_store`` names while it reads feature_store.yaml, before it opens the registry:
that is where :mod:`recsys_llm.registry_guard` comes in for the ``feast`` command, with any online store.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from feast import FileSource
from feast.infra.offline_stores.duckdb import DuckDBOfflineStore as FeastDuckDBOfflineStore
from feast.infra.offline_stores.duckdb import DuckDBOfflineStoreConfig as FeastDuckDBOfflineStoreConfig

from recsys_llm.registry_guard import guard_registries
from recsys_llm.schema import CREATED_TIMESTAMP

guard_registries()


class DuckDBOfflineStoreConfig(FeastDuckDBOfflineStoreConfig):  # type: ignore[misc]  # Feast ships no types
    """``offline_store`` of feature_store.yaml: Feast's keys for DuckDB."""

    type: Literal["recsys_llm.stores.DuckDBOfflineStore"] = "recsys_llm.stores.DuckDBOfflineStore"


class DuckDBOfflineStore(FeastDuckDBOfflineStore):  # type: ignore[misc]  # Feast ships no types
    """Feast's DuckDB store."""

    def validate_data_source(self, config: Any, data_source: Any) -> None:
        """Check a source as Feast does, but for a folder of parts that the first materialisation will make.

        Feast logs a warning for each such view of a new repository.
        """
        if not _awaits_parts(data_source):
            super().validate_data_source(config, data_source)


def _awaits_parts(data_source: Any) -> bool:
    if not isinstance(data_source, FileSource) or data_source.created_timestamp_column != CREATED_TIMESTAMP:
        return False
    folder = Path(data_source.path)
    return folder.parent.is_dir() and not folder.exists()
