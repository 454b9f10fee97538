"""Rewriting stored parts: fewer files, or without a person's rows. Rows that stay are not changed in any column.

New parts are written first, then the ledger exchanges them for the old ones in one transaction, then the old files are
removed. A process that is killed in between leaves rows twice at most, or files that the ledger knows as retired; the
next run, of any kind, finishes that.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from recsys_llm.errors import LedgerError
from recsys_llm.producers.ledger import Ledger
from recsys_llm.producers.parts import Parts
from recsys_llm.producers.pipeline import remove_retired
from recsys_llm.schema import CREATED_TIMESTAMP


@dataclass(frozen=True)
class Rewritten:
    """What was done to a view's parts."""

    parts_before: int
    parts_after: int
    rows: int
    """Rows that the rewritten parts hold now."""
    removed: int = 0
    """Rows that are gone."""


def compact(view: str, ledger: Ledger, parts: Parts, *, rows_per_part: int) -> Rewritten:
    """Merge small parts, in the order in which they were computed, into ones of about ``rows_per_part`` rows.

    Raises
    ------
    LedgerError
        Another run holds the view, or parts and ledger differ: a killed run has to be finished first.
    """
    with ledger.lock(view):
        before = settled(view, ledger, parts)
        rows = 0
        for group in _groups(parts, rows_per_part):
            merged = pa.concat_tables([parts.read(name) for name in group]).sort_by(CREATED_TIMESTAMP)
            rows += merged.num_rows
            _exchange(view, ledger, parts, group, merged)
        return Rewritten(len(before), len(parts.names()), rows)


def forget(view: str, join_key: str, key: str, ledger: Ledger, parts: Parts) -> Rewritten:
    """Remove all rows of a key from the parts and the ledger.

    Raises
    ------
    LedgerError
        As :func:`compact`.
    """
    with ledger.lock(view):
        before = settled(view, ledger, parts)
        kept = removed = 0
        for name in sorted(before):
            keys = parts.read(name, [join_key]).column(join_key)
            count = pc.sum(pc.equal(keys, key)).as_py() or 0
            if count:
                table = parts.read(name)
                rest = table.filter(pc.not_equal(table.column(join_key), key))
                _exchange(view, ledger, parts, [name], rest)
                kept, removed = kept + rest.num_rows, removed + count
        ledger.replace(view, (), {}, forgotten=[key])
        if before and not parts.names():
            parts.ensure_readable(table.schema)  # history may still be asked for
        return Rewritten(len(before), len(parts.names()), kept, removed)


def settled(view: str, ledger: Ledger, parts: Parts) -> set[str]:
    """Return the parts of a view that no killed run has left to be finished."""
    parts.sweep()
    remove_retired(view, ledger, parts)
    recorded, present = ledger.parts(view), set(parts.names())
    if recorded != present:
        raise LedgerError(
            f"view {view}: the ledger has {len(recorded)} parts, {parts.directory} has {len(present)}; materialise the "
            "view once, which finishes a killed run, then try again"
        )
    return present


def _groups(parts: Parts, rows_per_part: int) -> Iterator[list[str]]:
    """Yield names of parts to merge: neighbours in time that say the same of themselves, each not large enough."""
    group: list[str] = []
    rows = 0
    told: dict[str, str] = {}
    for name in parts.in_order(parts.names()):
        count, before, told = parts.rows(name), told, parts.manifest_of(name)
        if group and (rows + count > rows_per_part or told != before):
            if len(group) > 1:
                yield group
            group, rows = [], 0
        group.append(name)
        rows += count
    if len(group) > 1:
        yield group


def _exchange(view: str, ledger: Ledger, parts: Parts, old: list[str], table: pa.Table) -> None:
    ledger.check_lock(view)
    same = Parts(parts.directory, view, parts.manifest_of(old[0]))
    new = {same.write(table): table.num_rows} if table.num_rows else {}
    ledger.replace(view, [name for name in old if name not in new], new)
    remove_retired(view, ledger, parts)
