"""Examples in slices of time, from a frame or from parquet files that are larger than memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from recsys_llm.errors import SchemaError, did_you_mean
from recsys_llm.retrieval.examples import Micros, check_timestamps
from recsys_llm.schema import EVENT_TIMESTAMP

Places = npt.NDArray[np.int64]


class ExampleSource(Protocol):
    """Examples whose rows have places from 0."""

    def micros(self) -> Micros:
        """Return the times of all examples, microseconds since the epoch: int64 (n,)."""
        ...

    def take(self, places: Places) -> pd.DataFrame:
        """Return the examples at ``places`` (ascending)."""
        ...


def time_slices(source: ExampleSource, rows: int) -> Iterator[pd.DataFrame]:
    """Yield all examples, the earliest first, at most ``rows`` at a time; within a slice they keep their order."""
    order = np.argsort(source.micros(), kind="stable")
    for start in range(0, len(order), rows):
        yield source.take(np.sort(order[start : start + rows]).astype(np.int64))


def open_examples(examples: Any) -> ExampleSource:
    """Return the source of examples: a frame, or the path of a parquet file or of a folder of them.

    Raises
    ------
    SchemaError
        It is neither, or there is no such file.
    """
    if isinstance(examples, pd.DataFrame):
        return FrameExamples(examples)
    if not isinstance(examples, str | Path):
        raise SchemaError(
            f"examples: expected a pandas DataFrame or the path of parquet files, found {type(examples).__name__}"
        )
    path = Path(examples)
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise SchemaError(f"examples: expected a parquet file or a folder of them, found none at {path}")
    return ParquetExamples(files)


class FrameExamples:
    """A frame in memory."""

    def __init__(self, frame: pd.DataFrame) -> None:
        self._frame = frame
        _check_column(list(frame.columns), "examples")

    def micros(self) -> Micros:
        """Return the times; see :class:`ExampleSource`."""
        return check_timestamps(self._frame[EVENT_TIMESTAMP], name=f"examples, column {EVENT_TIMESTAMP!r}")

    def take(self, places: Places) -> pd.DataFrame:
        """Return rows under their own index."""
        return self._frame.iloc[places]


class _Group(NamedTuple):
    """A row group of a file."""

    file: Path
    number: int
    start: int
    """Place of its first row."""
    rows: int


class ParquetExamples:
    """Parquet files, of which the times are held in memory and rows are read by the group."""

    def __init__(self, files: list[Path]) -> None:
        self._groups: list[_Group] = []
        start = 0
        for file in files:
            with pq.ParquetFile(file) as parquet:
                _check_column(parquet.schema_arrow.names, str(file))
                for number in range(parquet.num_row_groups):
                    rows = parquet.metadata.row_group(number).num_rows
                    self._groups.append(_Group(file, number, start, rows))
                    start += rows

    def micros(self) -> Micros:
        """Return the times; see :class:`ExampleSource`."""
        found = [
            check_timestamps(
                _read(group, [EVENT_TIMESTAMP]).to_pandas()[EVENT_TIMESTAMP],
                name=f"{group.file}, row group {group.number}, column {EVENT_TIMESTAMP!r}",
            )
            for group in self._groups
        ]
        return np.concatenate(found) if found else np.empty(0, dtype=np.int64)

    def take(self, places: Places) -> pd.DataFrame:
        """Return rows under their places."""
        pieces = []
        for group in self._groups:
            first, last = np.searchsorted(places, [group.start, group.start + group.rows])
            if first < last:
                pieces.append(_read(group).take(pa.array(places[first:last] - group.start)))
        frame: pd.DataFrame = pa.concat_tables(pieces, promote_options="permissive").to_pandas()
        frame.index = pd.Index(places)
        return frame


def _read(group: _Group, columns: list[str] | None = None) -> pa.Table:
    with pq.ParquetFile(group.file) as parquet:
        return parquet.read_row_group(group.number, columns=columns)


def _check_column(columns: list[Any], where: str) -> None:
    if EVENT_TIMESTAMP not in columns:
        hint = did_you_mean(EVENT_TIMESTAMP, [str(name) for name in columns])
        raise SchemaError(f"{where}: column {EVENT_TIMESTAMP!r} is missing; {hint}")
