"""What is private to Feast's online stores: their keys, hash fields, tables and clients.

tests/retrieval/test_online_stores.py compares readers with Feast's own answers.
"""

from __future__ import annotations

import struct
from pathlib import Path

import feast
from feast.infra.key_encoding_utils import serialize_entity_key_prefix
from feast.infra.online_stores.helpers import _mmh3, compute_table_id, compute_versioned_name
from feast.infra.online_stores.redis import RedisOnlineStoreConfig
from feast.infra.online_stores.sqlite import SqliteOnlineStoreConfig
from feast.protos.feast.types.Value_pb2 import ValueType

from recsys_llm.retrieval.layout import KeyForm, RedisLayout, SqliteLayout
from recsys_llm.retrieval.online import OnlineReader
from recsys_llm.retrieval.service import View


def reader_of(store: feast.FeatureStore) -> OnlineReader:
    """Return the fastest reader for the online store of ``store``."""
    config = store.config
    if is_sqlite(config):
        from recsys_llm.retrieval.online_sqlite import SqliteReader

        return SqliteReader(sqlite_path(config), lambda view: sqlite_layout(config, view))
    if is_redis(config):
        from recsys_llm.retrieval.online_redis import RedisReader

        # Feast's own client: its TLS, password, database and timeouts.
        return RedisReader(
            lambda: store.provider.online_store._get_client(config.online_store),
            lambda view: redis_layout(config, view),
        )
    from recsys_llm.retrieval.online_feast import FeastReader

    return FeastReader(store)


def is_redis(config: feast.RepoConfig) -> bool:
    """Return whether rows are in Feast's Redis store."""
    return isinstance(config.online_store, RedisOnlineStoreConfig)


def is_sqlite(config: feast.RepoConfig) -> bool:
    """Return whether rows are in Feast's sqlite store."""
    return type(config.online_store) is SqliteOnlineStoreConfig


def sqlite_path(config: feast.RepoConfig) -> Path:
    """Return the database of Feast's sqlite store."""
    path = Path(config.online_store.path)
    return path if path.is_absolute() else Path(config.repo_path or ".").resolve() / path


def redis_layout(config: feast.RepoConfig, view: View) -> RedisLayout:
    """Return where Feast's Redis store keeps a view."""
    name = compute_versioned_name(view.definition, config.registry.enable_online_feature_view_versioning)
    fields = tuple(_mmh3(f"{name}:{feature.name}") for feature in view.features)
    return RedisLayout(_key_form(config, view, config.project.encode("utf-8")), fields, f"_ts:{name}".encode())


def sqlite_layout(config: feast.RepoConfig, view: View) -> SqliteLayout:
    """Return where Feast's sqlite store keeps a view."""
    versioning = config.registry.enable_online_feature_view_versioning
    return SqliteLayout(_key_form(config, view, b""), compute_table_id(config.project, view.definition, versioning))


def _key_form(config: feast.RepoConfig, view: View, tail: bytes) -> KeyForm:
    prefix = serialize_entity_key_prefix([view.join_key], config.entity_key_serialization_version)
    return KeyForm(bytes(prefix) + struct.pack("<I", ValueType.STRING), tail)
