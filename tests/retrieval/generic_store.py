"""An online store that the package has no reader of its own for: Feast's sqlite store under another name."""

from __future__ import annotations

from typing import Literal

from feast.infra.online_stores.sqlite import SqliteOnlineStore, SqliteOnlineStoreConfig


class GenericOnlineStoreConfig(SqliteOnlineStoreConfig):
    type: Literal["tests.retrieval.generic_store.GenericOnlineStore"] = (
        "tests.retrieval.generic_store.GenericOnlineStore"
    )

    path: str = "generic.db"


class GenericOnlineStore(SqliteOnlineStore):
    @staticmethod
    def _get_db_path(config):
        return config.online_store.path
