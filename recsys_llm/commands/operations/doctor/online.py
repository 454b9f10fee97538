"""Does the online store hold what the parts hold, and will it keep it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from feast.protos.feast.types.Value_pb2 import Value

# Private to Feast, as in recsys_llm.engine.publish: what is compared is what is written.
from feast.utils import _convert_arrow_to_proto

from recsys_llm.commands.operations.doctor.findings import Finding, Limits
from recsys_llm.commands.operations.opening import StoredView
from recsys_llm.producers.parts import part_files
from recsys_llm.retrieval.online import NO_ROW, Request, StoredRows, open_reader
from recsys_llm.retrieval.service import resolve_definition
from recsys_llm.schema import CONTENT_HASH, CREATED_TIMESTAMP, EVENT_TIMESTAMP
from recsys_llm.sources.connection import open_duckdb, quoted
from recsys_llm.stores import RedisOnlineStore

if TYPE_CHECKING:
    import feast

_SECOND = 1_000_000
_FULL = 0.9


def check_store(store: feast.FeatureStore, views: list[StoredView]) -> Iterator[Finding]:
    """Find a Redis that is emptied, evicts, or is nearly full; one that can't be reached raises."""
    online, kind = store.provider.online_store, store.config.online_store.type
    if not isinstance(online, RedisOnlineStore):
        yield Finding("online store", kind, True, "no Redis of recsys_llm: not checked for eviction")
        return
    memory, statistics = online.server_info(store.config)
    evicted, limit, used = int(statistics["evicted_keys"]), int(memory["maxmemory"]), int(memory["used_memory"])
    policy = memory["maxmemory_policy"]
    yield Finding("online store", kind, policy == "noeviction", f"maxmemory-policy {policy}")
    yield Finding("online store", kind, evicted == 0, f"{evicted:,} keys were evicted since it started", evicted, 0)
    share = used / limit if limit else 0.0
    yield Finding("online store", kind, share < _FULL, f"{share:.0%} of maxmemory are used", share, _FULL)
    filled = [view.name for view in views if view.has_parts]
    lost = online.unpublished(store.config, filled)
    detail = f"{len(filled) - len(lost)} of {len(filled)} views are marked as published"
    yield Finding("online store", kind, not lost, detail + (f"; not {', '.join(lost)}: run repair" if lost else ""))


def check_parity(view: StoredView, limits: Limits, at: datetime) -> Iterator[Finding]:
    """Compare the newest rows of some keys with the online store, byte for byte."""
    (resolved,) = resolve_definition(view.store, _service(view)).views
    expected = _newest(view, limits, at)
    if not expected.num_rows:
        yield Finding("parity", view.name, True, "no row is stamped up to now: nothing to compare")
        return
    reader = open_reader(view.store)
    try:
        keys = tuple(expected.column(view.join_key).to_pylist())
        stored = reader.read([Request(resolved.entity, (resolved,), keys)])[0][0]
    finally:
        reader.close()
    wrong = list(_differences(view, expected, stored, [feature.name for feature in resolved.features]))
    detail = f"{len(keys) - len(wrong):,} of {len(keys):,} sampled keys have the newest stored row online"
    if wrong:
        detail += f"; not {wrong[0][0]!r}: {wrong[0][1]}; run `recsys-llm repair {view.name}`"
    yield Finding("parity", view.name, not wrong, detail, float(len(wrong)), 0.0)


def _differences(
    view: StoredView, expected: pa.RecordBatch, stored: StoredRows, names: list[str]
) -> Iterator[tuple[str, str]]:
    entities = [view.store.get_entity(name) for name in view.definition.entities]
    types = {entity.join_key: entity.value_type for entity in entities}
    rows: Any = _convert_arrow_to_proto(expected, view.definition, types)
    keys, stamps = expected.column(view.join_key).to_pylist(), expected.column(EVENT_TIMESTAMP).cast(pa.int64())
    for place, (key, stamp, (_, values, _, _)) in enumerate(zip(keys, stamps.to_pylist(), rows, strict=True)):
        found = int(stored.timestamps[place])
        if found == NO_ROW:
            yield key, "it has no row online"
        elif found // _SECOND != stamp // _SECOND:  # the sqlite store keeps whole seconds
            yield key, "its row online is of another time"
        else:
            other = [name for name in names if not _same(stored.values[name][place], values.get(name))]
            if other:
                yield key, f"its row online has another {other[0]}"


def _same(stored: bytes | None, value: Value | None) -> bool:
    return (stored or b"") == (b"" if value is None else value.SerializeToString())


def _newest(view: StoredView, limits: Limits, at: datetime) -> pa.RecordBatch:
    """Return the newest row by ``at`` of some keys, drawn by a hash."""
    key = quoted(view.join_key)
    query = f"""
        SELECT * FROM read_parquet(?) WHERE {EVENT_TIMESTAMP} <= ? AND {key} IN (
            SELECT {key} FROM read_parquet(?) GROUP BY 1 ORDER BY hash({key} || ?), {key} LIMIT ?
        )
        QUALIFY row_number() OVER (
            PARTITION BY {key} ORDER BY {EVENT_TIMESTAMP} DESC, {CREATED_TIMESTAMP} DESC
        ) = 1
    """
    files = [str(file) for file in part_files(view.directory)]
    with open_duckdb() as connection:
        table = connection.execute(query, [files, at, files, str(limits.seed), limits.sample]).to_arrow_table()
    return pa.RecordBatch.from_struct_array(table.drop_columns([CONTENT_HASH]).to_struct_array().combine_chunks())


def _service(view: StoredView) -> Any:
    from feast import FeatureService

    return FeatureService(name=view.name, features=[view.definition])
