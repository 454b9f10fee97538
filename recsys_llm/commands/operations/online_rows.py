"""Removing one entity's rows from an online store, which Feast has no call for."""

from __future__ import annotations

import sqlite3
from contextlib import closing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recsys_llm.errors import StoreError
from recsys_llm.sources.connection import quoted
from recsys_llm.stores import RedisOnlineStore

if TYPE_CHECKING:
    import feast


def delete_online(store: feast.FeatureStore, join_key: str, key: str) -> None:
    """Remove the rows of one entity in all views of the project, in those that are no longer registered as well.

    Redis keeps all views of an entity in one hash, which goes as a whole; its append-only file is written anew. sqlite
    writes zeros over what is deleted.

    Raises
    ------
    StoreError
        The store is of another kind, can't be reached or refuses.
    """
    from feast.infra.online_stores.redis import RedisOnlineStore as FeastRedisOnlineStore
    from feast.infra.online_stores.sqlite import SqliteOnlineStoreConfig

    from recsys_llm.redis_errors import REDIS_FAILED

    online, settings = store.provider.online_store, store.config.online_store
    entity = _entity_key(store, join_key, key)
    try:
        if isinstance(online, FeastRedisOnlineStore):
            with online.bulk_writes() if isinstance(online, RedisOnlineStore) else nullcontext():
                _delete_in_redis(online._get_client(settings), entity, store.project)
        elif isinstance(settings, SqliteOnlineStoreConfig):
            _delete_in_sqlite(store, entity)
        else:
            raise StoreError(
                f"online store {settings.type}: recsys_llm can't remove single rows from it; remove those of "
                f"{join_key} {key!r} with its own tools, then run the command again"
            )
    except (*REDIS_FAILED, sqlite3.Error) as error:
        raise StoreError(f"online store {settings.type}: {error}; run the command again") from None


def _entity_key(store: feast.FeatureStore, join_key: str, key: str) -> bytes:
    from feast.infra.key_encoding_utils import serialize_entity_key
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value

    proto = EntityKey(join_keys=[join_key], entity_values=[Value(string_val=key)])
    version = store.config.entity_key_serialization_version
    return bytes(serialize_entity_key(proto, entity_key_serialization_version=version))


def _delete_in_redis(client: Any, key: bytes, project: str) -> None:
    client.delete(key + project.encode())
    if client.info("persistence").get("aof_enabled"):
        client.bgrewriteaof()


def _delete_in_sqlite(store: feast.FeatureStore, key: bytes) -> None:
    file = Path(store.config.online_store.path)
    file = file if file.is_absolute() else Path(store.config.repo_path or ".").resolve() / file
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("PRAGMA secure_delete = ON")
        query = """
            SELECT DISTINCT m.name FROM sqlite_master AS m JOIN pragma_table_info(m.name) AS c
            WHERE m.type = 'table' AND c.name = 'entity_key' AND substr(m.name, 1, ?) = ?
        """
        prefix = f"{store.project}_"
        for (table,) in connection.execute(query, [len(prefix), prefix]).fetchall():
            connection.execute(f"DELETE FROM {quoted(table)} WHERE entity_key = ?", [key])
