"""Streams of sorted rows regrouped by their keys."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc


def whole_keys(batches: Iterable[Any], key: str, *, batch_rows: int) -> Iterator[Any]:
    """Regroup a stream sorted by ``key`` so that no key is split over two batches.

    Parameters
    ----------
    batches
        Record batches of one schema, sorted by ``key``.
    key
        Name of the column.
    batch_rows
        Most rows per batch; only a single key with more rows than this makes a larger one.

    Examples
    --------
    >>> parts = [pa.record_batch({"user": ["a", "b"]}), pa.record_batch({"user": ["b", "c", "d"]})]
    >>> [batch["user"].to_pylist() for batch in whole_keys(parts, "user", batch_rows=3)]
    [['a', 'b', 'b'], ['c', 'd']]
    """
    held: list[Any] = []
    for batch in batches:
        if batch.num_rows == 0:
            continue
        if held and batch.column(key)[-1] == held[-1].column(key)[-1]:
            held.append(batch)  # all of one key, since sorted: nothing can be closed yet
            continue
        joined = pa.concat_batches([*held, batch])
        position = 0
        starts = run_starts(joined, [key])
        for cut in _cuts(starts, joined.num_rows, batch_rows):
            yield joined.slice(position, cut - position)
            position = cut
        held = [joined.slice(position)]
    if held:
        joined = pa.concat_batches(held)
        position = 0
        for cut in [*_cuts(run_starts(joined, [key]), joined.num_rows, batch_rows), joined.num_rows]:
            yield joined.slice(position, cut - position)
            position = cut


def collapse_duplicates(batches: Iterable[Any], keys: Sequence[str], *, largest: Sequence[str]) -> Iterator[Any]:
    """Make one row of neighbouring rows with equal ``keys``: the first, with the largest number of each of ``largest``.

    Parameters
    ----------
    batches
        Non-empty record batches of one schema in which rows with equal ``keys`` are neighbours, also across batches.
    keys
        Columns without nulls.
    largest
        Float columns; a null is smaller than any number.

    Examples
    --------
    >>> rows = pa.record_batch({"user": ["a", "a", "b"], "rating": [3.0, 4.0, None]})
    >>> [batch.to_pydict() for batch in collapse_duplicates([rows], ["user"], largest=["rating"])]
    [{'user': ['a'], 'rating': [4.0]}, {'user': ['b'], 'rating': [None]}]
    """
    held: Any = None
    for batch in batches:
        joined = batch if held is None else pa.concat_batches([held, batch])
        starts = run_starts(joined, keys)
        single = joined if len(starts) == joined.num_rows else _largest_per_run(joined, starts, largest)
        if single.num_rows > 1:
            yield single.slice(0, single.num_rows - 1)
        held = single.slice(single.num_rows - 1)  # its run may go on in the next batch
    if held is not None:
        yield held


def run_starts(batch: Any, keys: Sequence[str]) -> npt.NDArray[np.int64]:
    """Return the rows at which any of ``keys`` differs from the row before; the first row is one.

    Examples
    --------
    >>> run_starts(pa.record_batch({"user": ["a", "a", "b"]}), ["user"]).tolist()
    [0, 2]
    """
    changed = np.zeros(batch.num_rows, dtype=np.bool_)
    changed[:1] = True
    for key in keys:
        column = batch.column(key)
        differs = pc.not_equal(column.slice(1), column.slice(0, max(batch.num_rows - 1, 0)))
        changed[1:] |= differs.to_numpy(zero_copy_only=False)
    return np.flatnonzero(changed)


def _cuts(starts: npt.NDArray[np.int64], rows: int, batch_rows: int) -> Iterator[int]:
    """Yield where to cut so that each piece has at most ``batch_rows`` rows, while more than that remain."""
    position = 0
    while rows - position > batch_rows:
        fitting = int(np.searchsorted(starts, position + batch_rows, side="right")) - 1
        cut = int(starts[fitting])
        if cut <= position:  # one key alone is larger
            if fitting + 1 == len(starts):
                return
            cut = int(starts[fitting + 1])
        yield cut
        position = cut


def _largest_per_run(batch: Any, starts: npt.NDArray[np.int64], largest: Sequence[str]) -> Any:
    columns = {name: batch.column(name).take(pa.array(starts)) for name in batch.schema.names}
    for name in largest:
        numbers = batch.column(name).to_numpy(zero_copy_only=False)  # null -> NaN, which fmax passes over
        columns[name] = pa.array(np.fmax.reduceat(numbers, starts), batch.schema.field(name).type, from_pandas=True)
    return pa.record_batch(columns, schema=batch.schema)
