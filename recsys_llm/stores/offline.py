"""Feast's DuckDB offline store under a name of ours, and nothing else.

Feast imports the class that ``offline_store`` names while it reads feature_store.yaml, before it opens the registry:
that is where :mod:`recsys_llm.registry_guard` comes in for the ``feast`` command, with any online store.
"""

from __future__ import annotations

from typing import Literal

from feast.infra.offline_stores.duckdb import DuckDBOfflineStore as FeastDuckDBOfflineStore
from feast.infra.offline_stores.duckdb import DuckDBOfflineStoreConfig as FeastDuckDBOfflineStoreConfig


class DuckDBOfflineStoreConfig(FeastDuckDBOfflineStoreConfig):  # type: ignore[misc]  # Feast ships no types
    """``offline_store`` of feature_store.yaml: Feast's keys for DuckDB."""

    type: Literal["recsys_llm.stores.DuckDBOfflineStore"] = "recsys_llm.stores.DuckDBOfflineStore"


class DuckDBOfflineStore(FeastDuckDBOfflineStore):  # type: ignore[misc]  # Feast ships no types
    """Feast's DuckDB store."""
