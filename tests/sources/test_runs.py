"""Regrouping of sorted streams, against loops over the rows."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_llm.sources import whole_keys
from recsys_llm.sources.base import rechunk
from recsys_llm.sources.runs import collapse_duplicates, run_starts

SCHEMA = pa.schema([("key", pa.string()), ("n", pa.int64()), ("x", pa.float32())])
lengths = st.lists(st.integers(1, 7), max_size=12)
splits = st.lists(st.integers(0, 6), min_size=1, max_size=20)


def stream(runs: list[int], sizes: list[int]) -> list[Any]:
    """Return batches of the given sizes (over and over) of rows whose key changes after each run."""
    keys = [f"k{number:02d}" for number, length in enumerate(runs) for _ in range(length)]
    values = [None if n % 3 == 0 else float(n % 5) for n in range(len(keys))]
    rows = pa.record_batch(
        [pa.array(keys, pa.string()), pa.array(range(len(keys))), pa.array(values, pa.float32())], schema=SCHEMA
    )
    parts, offset, turn = [], 0, 0
    while offset < len(keys):
        size = sizes[turn % len(sizes)] or (1 if turn >= len(sizes) else 0)
        parts.append(rows.slice(offset, size))
        offset, turn = offset + size, turn + 1
    return parts


def column(batches: list[Any], name: str) -> list[Any]:
    return [value for batch in batches for value in batch.column(name).to_pylist()]


@given(lengths, splits, st.integers(1, 10))
def test_whole_keys_splits_no_key_and_loses_no_row(runs: list[int], sizes: list[int], batch_rows: int) -> None:
    parts = stream(runs, sizes)
    found = list(whole_keys(iter(parts), "key", batch_rows=batch_rows))
    assert column(found, "n") == list(range(sum(runs)))
    keys = [set(batch.column("key").to_pylist()) for batch in found]
    assert sum(len(group) for group in keys) == len(set().union(*keys))
    assert all(batch.num_rows <= batch_rows or len(group) == 1 for batch, group in zip(found, keys, strict=True))
    sizes_found = [batch.num_rows for batch in found]
    assert 0 not in sizes_found


def test_whole_keys_holds_no_more_than_it_must() -> None:
    seen = 0

    def parts() -> Any:
        nonlocal seen
        for part in stream([2] * 50, [4]):
            seen += part.num_rows
            yield part

    next(whole_keys(parts(), "key", batch_rows=10))
    assert seen <= 16


def test_one_long_key_is_one_batch() -> None:
    assert [batch.num_rows for batch in whole_keys(iter(stream([1, 20, 1], [3])), "key", batch_rows=4)] == [1, 20, 1]


@given(lengths, splits)
def test_collapsed_rows_are_the_first_of_each_run_with_its_maximum(runs: list[int], sizes: list[int]) -> None:
    parts = [part for part in stream(runs, sizes) if part.num_rows]
    found = list(collapse_duplicates(iter(parts), ["key"], largest=["x"]))
    rows = zip(column(parts, "key"), column(parts, "n"), column(parts, "x"), strict=True)
    expected = []
    for key, group in groupby(rows, key=lambda row: row[0]):
        members = list(group)
        numbers = [x for _, _, x in members if x is not None]
        expected.append((key, members[0][1], max(numbers) if numbers else None))
    assert list(zip(column(found, "key"), column(found, "n"), column(found, "x"), strict=True)) == expected
    assert all(batch.num_rows > 0 and batch.schema == SCHEMA for batch in found)


@given(lengths, splits, st.integers(1, 10))
def test_rechunk_fills_every_batch_but_the_last(runs: list[int], sizes: list[int], batch_rows: int) -> None:
    found = list(rechunk(iter(stream(runs, sizes)), batch_rows))
    assert column(found, "n") == list(range(sum(runs)))
    assert all(batch.num_rows == batch_rows for batch in found[:-1])
    assert all(0 < batch.num_rows <= batch_rows for batch in found)


def test_rechunk_refuses_no_rows() -> None:
    with pytest.raises(ValueError, match="batch_rows: expected at least 1, found 0"):
        list(rechunk(iter([]), 0))


def test_runs_start_where_any_key_changes() -> None:
    batch = pa.record_batch({"a": [1, 1, 1, 2], "b": ["x", "x", "y", "y"]})
    assert run_starts(batch, ["a", "b"]).tolist() == [0, 2, 3]
    assert run_starts(batch.slice(0, 0), ["a"]).tolist() == []
