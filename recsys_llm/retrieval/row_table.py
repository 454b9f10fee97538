"""Decoded rows of items as contiguous arrays in a bounded number of bytes."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from itertools import repeat

import numpy as np
import numpy.typing as npt

from recsys_llm.retrieval.online import Decoded
from recsys_llm.retrieval.stored import Cells, Column, Rows, take

ROW_OVERHEAD = 300
"""Bytes of a row's id, its place in the index, and its times."""
Flags = npt.NDArray[np.bool_]
Times = npt.NDArray[np.float64]


class RowTable:
    """Rows by id; the ones that were not asked for lately make room for new ones (the clock algorithm).

    Parameters
    ----------
    like
        Rows whose columns the table has; vectors with their lengths.
    max_bytes
        Of all rows together: arrays, ids, strings and lists.
    """

    def __init__(self, like: Decoded, max_bytes: int) -> None:
        fixed = [column for column in like.columns.values() if isinstance(column, np.ndarray)]
        self._row_bytes = ROW_OVERHEAD + sum(column[:0].itemsize * _width(column) for column in fixed)
        self._row_bytes += 8 * (len(like.columns) - len(fixed)) + 8 * len(like.timestamps)
        self._max_bytes = max_bytes
        self.capacity = max(1, max_bytes // self._row_bytes)
        # Memory that nothing was written to costs nothing: the arrays grow with their rows.
        self._columns = {name: _empty(column, self.capacity) for name, column in like.columns.items()}
        self._timestamps = {view: np.empty(self.capacity, dtype=np.int64) for view in like.timestamps}
        self._slots: dict[str, int] = {}
        self._ids: list[str | None] = []
        self._free: list[int] = []
        self._hand = 0
        self._object_bytes: npt.NDArray[np.int64] = np.zeros(self.capacity, dtype=np.int64)
        self._variable = 0
        self.read_at: Times = np.full(self.capacity, -np.inf)
        """When each row was read from the store."""
        self.asked: Flags = np.zeros(self.capacity, dtype=np.bool_)
        """Which rows were asked for since they were read."""
        self.oldest: float = np.inf
        """When the row that was read first was read; earlier, where that row is gone."""
        self._recent: Flags = np.zeros(self.capacity, dtype=np.bool_)

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def bytes(self) -> int:
        """What the rows take."""
        return len(self) * self._row_bytes + self._variable

    def holds(self, rows: Decoded) -> bool:
        """Return whether the columns of ``rows`` are the table's, also in the length of vectors."""
        return rows.columns.keys() == self._columns.keys() and all(
            not isinstance(column, np.ndarray) or column.shape[1:] == self._columns[name].shape[1:]
            for name, column in rows.columns.items()
        )

    def find(self, ids: Sequence[str]) -> Rows:
        """Return the slot of each id, int64 (n,); -1: not here."""
        return np.fromiter(map(self._slots.get, ids, repeat(-1)), dtype=np.int64, count=len(ids))

    def gather(self, slots: Rows) -> Decoded:
        """Return copies of rows, and note that they were asked for."""
        self.asked[slots] = self._recent[slots] = True
        return Decoded(
            {name: take(column, slots) for name, column in self._columns.items()},
            {view: column[slots] for view, column in self._timestamps.items()},
        )

    def ids_at(self, slots: Rows) -> tuple[str, ...]:
        """Return the ids of used slots."""
        return tuple(id_ for slot in slots.tolist() if (id_ := self._ids[slot]) is not None)

    def used(self) -> Rows:
        """Return all slots that hold a row."""
        return np.fromiter(self._slots.values(), dtype=np.int64, count=len(self._slots))

    def put(self, ids: Sequence[str], rows: Decoded, places: Sequence[int], now: float) -> int:
        """Keep rows ``places`` of ``rows``, whose ids are ``ids``; return how many others made room."""
        sizes = _object_bytes(rows.columns.values(), places)
        evicted, kept, slots = 0, [], []
        for place, size in zip(places, sizes, strict=True):
            if self._row_bytes + size > self._max_bytes:
                continue
            self.drop([ids[place]])
            while len(self) >= self.capacity or self.bytes + self._row_bytes + size > self._max_bytes:
                if not len(self):
                    break
                self._evict()
                evicted += 1
            slot = self._new_slot(ids[place], size)
            kept.append(place)
            slots.append(slot)
        # A slot that was filled and evicted in this very call was filled again later: the last one counts.
        at, where = np.array(slots, dtype=np.int64), np.array(kept, dtype=np.int64)
        for name, column in rows.columns.items():
            target = self._columns[name]
            if isinstance(target, Cells):
                target.values[at] = column.values[where]
            else:
                target[at] = column[where]
        for view, stamps in rows.timestamps.items():
            self._timestamps[view][at] = stamps[where]
        self.read_at[at] = now
        self.oldest = min(self.oldest, now)
        self.asked[at] = False
        return evicted

    def drop(self, ids: Iterable[str]) -> int:
        """Forget rows; return how many were here."""
        dropped = 0
        for id_ in ids:
            slot = self._slots.pop(id_, None)
            if slot is not None:
                self._release(slot)
                dropped += 1
        return dropped

    def _new_slot(self, id_: str, size: int) -> int:
        slot = self._free.pop() if self._free else len(self._ids)
        if slot == len(self._ids):
            self._ids.append(None)
        self._ids[slot] = id_
        self._slots[id_] = slot
        self._object_bytes[slot] = size
        self._variable += size
        self._recent[slot] = True
        return slot

    def _release(self, slot: int) -> None:
        self._ids[slot] = None
        self._free.append(slot)
        self._variable -= int(self._object_bytes[slot])
        for column in self._columns.values():
            if isinstance(column, Cells):
                column.values[slot] = None

    def _evict(self) -> None:
        """Drop the first row after the clock's hand that was not asked for since the hand last passed it."""
        while True:
            self._hand = (self._hand + 1) % len(self._ids)
            id_ = self._ids[self._hand]
            if id_ is None:
                continue
            if self._recent[self._hand]:
                self._recent[self._hand] = False
                continue
            self.drop([id_])
            return


def merged(n: int, first: Decoded, first_rows: Rows, second: Decoded, second_rows: Rows) -> Decoded:
    """Return n rows, some from one and some from the other."""
    return Decoded(
        {
            name: _merged(n, column, first_rows, second.columns[name], second_rows)
            for name, column in first.columns.items()
        },
        {
            view: _merged(n, stamps, first_rows, second.timestamps[view], second_rows)
            for view, stamps in first.timestamps.items()
        },
    )


def _merged(n: int, first: Column, first_rows: Rows, second: Column, second_rows: Rows) -> Column:
    whole = _empty(first, n)
    if isinstance(whole, Cells):
        whole.values[first_rows], whole.values[second_rows] = first.values, second.values
    else:
        whole[first_rows], whole[second_rows] = first, second
    return whole


def _empty(like: Column, n: int) -> Column:
    if isinstance(like, Cells):
        return Cells(like.kind, np.empty(n, dtype=object))
    return np.empty((n, *like.shape[1:]), dtype=like.dtype)


def _width(column: npt.NDArray[np.float32]) -> int:
    return int(np.prod(column.shape[1:], dtype=np.int64))


def _object_bytes(columns: Iterable[Column], places: Sequence[int]) -> list[int]:
    """Return the bytes of the strings and lists of each row."""
    sizes = [0] * len(places)
    for column in columns:
        if isinstance(column, Cells):
            for number, place in enumerate(places):
                value = column.values[place]
                if value is not None:
                    sizes[number] += sys.getsizeof(value)
                    sizes[number] += sum(map(sys.getsizeof, value)) if isinstance(value, tuple) else 0
    return sizes
