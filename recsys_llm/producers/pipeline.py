"""From due rows to stored features: skip, compute, write, publish, record.

Per chunk, in this order: offline part, online store, ledger. A run that is killed anywhere resumes without loss: a
part that is not in the ledger is whole (it was renamed into place), so the next run publishes and records it instead
of computing it again, but for rows that another run has recorded meanwhile. That also rebuilds a lost ledger. A part
that is in the ledger and not on disk is an error, never silence.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_llm.errors import LedgerError, ModelError, RowError
from recsys_llm.producers.arrays import first_not_finite, first_of_other_length
from recsys_llm.producers.base import Due, Producer
from recsys_llm.producers.hashing import HASH_TYPE, row_ids
from recsys_llm.producers.ledger import Ledger
from recsys_llm.producers.parts import Parts
from recsys_llm.producers.under_way import UnderWay
from recsys_llm.schema import CONTENT_HASH, CREATED_TIMESTAMP, EMBEDDING, EVENT_TIMESTAMP, ROW_ID
from recsys_llm.timestamps import FUTURE_TOLERANCE, TIMESTAMP, now, to_micros

Publish = Callable[[pa.Table], None]
"""Write rows to the online store. A table has each key once, and no row older than what was published before."""

Execute = Callable[[Iterator[Due]], Iterator[tuple[Due, pa.RecordBatch]]]
"""From chunks to each of them with its features, in any order."""


@dataclass
class Summary:
    """What a run did, or (for a plan) would do."""

    view: str
    unit: str
    due: int = 0
    computed: int = 0
    skipped: int = 0
    recovered: int = 0
    """Rows of parts that a killed run had written but not recorded."""
    cost: int = 0
    """Work of the computed rows, in :attr:`unit`."""
    seconds: float = 0.0
    started: float = field(default_factory=time.perf_counter, repr=False)

    def finish(self) -> Summary:
        """Stop the clock and return self."""
        self.seconds = time.perf_counter() - self.started
        return self

    def __str__(self) -> str:
        if not self.due and not self.recovered:
            return f"{self.view}: nothing due"
        recovered = f", {self.recovered:,} recovered" if self.recovered else ""
        if not self.computed:
            return (
                f"{self.view}: nothing new to compute ({self.skipped:,} of {self.due:,} rows are up to date{recovered})"
            )
        work = "" if self.unit == "rows" else f" ({self.cost:,} {self.unit})"
        rate = self.computed / max(self.seconds, 1e-9)
        return (
            f"{self.view}: computed {self.computed:,} rows{work}, skipped {self.skipped:,}{recovered}, "
            f"{self.seconds:.1f} s, {rate:,.0f} rows/s"
        )


def plan(
    view: str, producer: Producer, ledger: Ledger, start: datetime, end: datetime, *, with_cost: bool = True
) -> Summary:
    """Count the rows, and with ``with_cost`` the work, that :func:`produce` would compute; nothing is stored."""
    summary = Summary(view, producer.unit)
    for due in producer.inputs(start, end):
        pending = ledger.unknown(view, producer.join_key, due.rows)
        summary.due += due.rows.num_rows
        summary.computed += pending.num_rows
        summary.cost += producer.cost(pending) if with_cost and pending.num_rows else 0
    summary.skipped = summary.due - summary.computed
    return summary.finish()


def produce(
    view: str,
    producer: Producer,
    ledger: Ledger,
    parts: Parts,
    publish: Publish,
    *,
    store: str,
    start: datetime,
    end: datetime,
    advance: Callable[[int], None] | None = None,
    lock_seconds: float = 0.0,
    execute: Execute | None = None,
) -> Summary:
    """Compute the rows of ``view`` stamped in (start, end] that nobody has computed yet, and store them.

    Parameters
    ----------
    publish
        Called once for each chunk with the newest row of each key, unless a newer row of the key is recorded.
    store
        Identity of the online store that ``publish`` writes to. One that hasn't held the view before is given all of
        its rows, from the parts.
    advance
        Called with the number of rows stored since the last call.
    lock_seconds
        How long to wait for another run of the view.
    execute
        Computes on other processes; None: in this one.

    Raises
    ------
    ExecutorError
        ``execute`` is done and hasn't returned each chunk once.
    LedgerError
        Another run holds the view, or the lock was lost.
    FingerprintError
        The view holds values of another model.
    RowError
        A computed value is not finite, or a row is stamped in the future; nothing of its chunk is stored.
    """
    summary = Summary(view, producer.unit)
    with ledger.lock(view, wait=lock_seconds):
        parts.check_dimension()
        ledger.check(view, producer.manifest["fingerprint"])
        summary.recovered = _recover(view, producer, ledger, parts, publish, store)
        # From here on the store holds every recorded row: a killed run need not publish all of them again.
        ledger.mark_published(view, store)
        under_way = UnderWay(view)
        chunks = under_way.sent(_pending(view, producer, ledger, start, end, summary))
        for pending, features in execute(chunks) if execute is not None else _computed_here(producer, chunks):
            under_way.returned(pending)
            table = _finished(view, producer, pending.rows, features)
            ledger.check_lock(view)  # computing takes long enough to lose it: then another run may have these rows
            _store(view, producer, ledger, publish, parts.write(table), table)
            summary.computed += table.num_rows
            if advance is not None:
                advance(table.num_rows)
            summary.cost += producer.cost(pending.rows)
        under_way.check()
        parts.ensure_readable(stored_schema(producer))
    return summary.finish()


def _recover(view: str, producer: Producer, ledger: Ledger, parts: Parts, publish: Publish, store: str) -> int:
    """Bring ledger and online store up to the parts on disk, and return the number of rows that the ledger lacked."""
    parts.sweep()
    remove_retired(view, ledger, parts)
    recorded, present = ledger.parts(view), parts.names()
    lost = sorted(recorded - set(present))
    if lost:
        raise LedgerError(
            f"view {view}: {len(lost)} recorded parts are missing in {parts.directory}, such as {lost[0]}; put them "
            f"back, or run `recsys-llm rebuild {view}` so that the next materialisation computes their rows again"
        )
    recovered = 0
    stored: set[str] = set()
    for name in parts.in_order(set(present) - recorded):
        table = parts.read(name)
        rest = _lacking(view, producer.join_key, ledger, table) if recorded else table
        ledger.check_lock(view)
        if rest.num_rows:
            part = name if rest.num_rows == table.num_rows else parts.write(rest)
            _store(view, producer, ledger, publish, part, rest)
            stored.add(part)
        if name not in stored:  # it is, where a run was killed right here: then it is the rest of an earlier one
            parts.remove([name])
        recovered += rest.num_rows
    if recorded and not ledger.is_published(view, store):
        republish(view, producer.join_key, ledger, parts, publish)
    return recovered


def _lacking(view: str, join_key: str, ledger: Ledger, table: pa.Table) -> pa.Table:
    """Return the rows of an unrecorded part that the ledger lacks.

    It has some where a run lost its lock and another one computed the same rows in its place, or where a merge of
    parts was killed. A part with several contents of a key and time is a merged one; the ledger knows only the last
    of them, so such a part is kept whole: rows twice are mended more easily than rows lost.
    """
    whole = table.combine_chunks()
    if whole.group_by([join_key, EVENT_TIMESTAMP]).aggregate([]).num_rows < whole.num_rows:
        return table
    return pa.Table.from_batches([ledger.unknown(view, join_key, batch) for batch in whole.to_batches()], whole.schema)


def remove_retired(view: str, ledger: Ledger, parts: Parts) -> None:
    """Remove the files of parts whose rows others hold; the caller holds the view's lock."""
    retired = ledger.retired(view)
    if retired:
        parts.remove(retired)
        ledger.drop_retired(view)


def republish(view: str, join_key: str, ledger: Ledger, parts: Parts, publish: Publish) -> int:
    """Publish the stored rows of a view again, nothing is computed; return how many were read."""
    rows = 0
    for name in parts.in_order(parts.names()):
        table = parts.read(name)
        _publish(view, join_key, ledger, publish, table)
        rows += table.num_rows
    return rows


def stored_schema(producer: Producer) -> pa.Schema:
    """Return the columns of a part: key, features, event time, creation time, content hash."""
    return pa.schema(
        [
            pa.field(producer.join_key, pa.string()),
            *producer.features,
            pa.field(EVENT_TIMESTAMP, TIMESTAMP),
            pa.field(CREATED_TIMESTAMP, TIMESTAMP),
            pa.field(CONTENT_HASH, HASH_TYPE),
        ]
    )


def _pending(
    view: str, producer: Producer, ledger: Ledger, start: datetime, end: datetime, summary: Summary
) -> Iterator[Due]:
    """Yield chunks of rows that the ledger doesn't hold."""
    latest = now() + FUTURE_TOLERANCE
    for rows, events in producer.inputs(start, end):
        pending = ledger.unknown(view, producer.join_key, rows)
        summary.due += rows.num_rows
        summary.skipped += rows.num_rows - pending.num_rows
        _check_stamps(view, producer.join_key, pending, latest)
        for first in range(0, pending.num_rows, producer.chunk_rows):
            yield Due(pending.slice(first, producer.chunk_rows), events)


def _check_stamps(view: str, join_key: str, batch: pa.RecordBatch, latest: datetime) -> None:
    late = pc.greater(batch.column(EVENT_TIMESTAMP), pa.scalar(latest, TIMESTAMP))
    if batch.num_rows and pc.any(late).as_py():
        row = pc.index(late, True).as_py()
        raise RowError(
            f"view {view}: the row of {join_key} {batch.column(join_key)[row].as_py()!r} would be stamped "
            f"{batch.column(EVENT_TIMESTAMP)[row].as_py()}, later than {latest}; a stamp in the future blocks later "
            "online writes: correct the source's time, or materialise up to an earlier end"
        )


def _computed_here(producer: Producer, chunks: Iterator[Due]) -> Iterator[tuple[Due, pa.RecordBatch]]:
    for due in chunks:
        yield due, producer.compute(due.rows, due.events)


def _finished(view: str, producer: Producer, inputs: pa.RecordBatch, features: pa.RecordBatch) -> pa.Table:
    if features.num_rows != inputs.num_rows:
        raise ModelError(f"view {view}: {inputs.num_rows} rows went in and {features.num_rows} features came out")
    created = now()
    columns = {name: features.column(name) for name in features.schema.names} | {
        producer.join_key: inputs.column(producer.join_key),
        EVENT_TIMESTAMP: inputs.column(EVENT_TIMESTAMP),
        CREATED_TIMESTAMP: pa.array([created] * inputs.num_rows, TIMESTAMP),
        CONTENT_HASH: inputs.column(CONTENT_HASH),
        ROW_ID: row_ids(inputs.column(CONTENT_HASH), to_micros(created)),
    }
    schema = stored_schema(producer)
    table = pa.Table.from_arrays([columns[name] for name in schema.names], schema=schema)
    _check_vectors(view, producer, table)
    return table


def _check_vectors(view: str, producer: Producer, table: pa.Table) -> None:
    """Refuse NaN and infinity inside vectors, and embeddings of unequal length; a null scalar stands for 'unknown', a
    broken vector for a broken model.
    """

    def refuse(name: str, row: int, problem: str) -> NoReturn:
        key, time = (table.column(column)[row].as_py() for column in (producer.join_key, EVENT_TIMESTAMP))
        raise RowError(
            f"view {view}: feature {name} of {producer.join_key} {key!r} at {time} {problem}; check the model's "
            "weights and the row's input"
        )

    for feature in producer.features:
        if not (pa.types.is_list(feature.type) and pa.types.is_floating(feature.type.value_type)):
            continue
        column = table.column(feature.name).combine_chunks()
        if (row := first_not_finite(column)) is not None:
            refuse(feature.name, row, "is not finite")
        if feature.name == EMBEDDING and column.null_count < len(column):
            dim = int(producer.manifest["dim"])
            if (wrong := first_of_other_length(column, dim)) is not None:
                refuse(feature.name, wrong[0], f"has length {wrong[1]} and not {dim}")


def _store(view: str, producer: Producer, ledger: Ledger, publish: Publish, part: str, table: pa.Table) -> None:
    """Publish and record a part that lies on disk."""
    _publish(view, producer.join_key, ledger, publish, table)
    ledger.record(view, producer.manifest["fingerprint"], producer.join_key, part, table)


def _publish(view: str, join_key: str, ledger: Ledger, publish: Publish, table: pa.Table) -> None:
    """Publish the newest row of each key, unless a newer one is recorded."""
    newest = newest_rows(table, join_key)
    keys = newest.column(join_key).to_pylist()
    times = newest.column(EVENT_TIMESTAMP).cast(pa.int64()).to_pylist()
    recorded = ledger.newest(view, keys)
    fresh = newest.filter(pa.array([recorded.get(key, time) <= time for key, time in zip(keys, times, strict=True)]))
    if fresh.num_rows:
        publish(fresh)


def newest_rows(table: pa.Table, join_key: str) -> pa.Table:
    """Return the newest row of each key; of rows at one time, the last."""
    position = pa.array(np.arange(table.num_rows))
    order = pc.sort_indices(
        pa.table({"key": table.column(join_key), "time": table.column(EVENT_TIMESTAMP), "position": position}),
        sort_keys=[("key", "ascending"), ("time", "ascending"), ("position", "ascending")],
    )
    ordered = table.take(order)
    keys = ordered.column(join_key).combine_chunks()
    if len(keys) < 2:
        return ordered
    is_last = pc.not_equal(keys.slice(0, len(keys) - 1), keys.slice(1))
    return ordered.filter(pa.array([*is_last.to_pylist(), True], pa.bool_()))
