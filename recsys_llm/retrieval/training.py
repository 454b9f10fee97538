"""A training set: examples, and the features of each as of its time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa

from recsys_llm.errors import SchemaError
from recsys_llm.retrieval.blocks import FeatureBatch
from recsys_llm.retrieval.columns import Column, nulls
from recsys_llm.schema import EVENT_TIMESTAMP

if TYPE_CHECKING:
    from pathlib import Path

    from feast.infra.offline_stores.offline_store import RetrievalJob
    from torch.utils.data import DataLoader

    from recsys_llm.retrieval.torch_dataset import ExampleDataset

PAIRWISE_KEY = "pairwise"
ROWS_KEY = "rows"


@dataclass(frozen=True, eq=False)
class TrainingSet(FeatureBatch):
    """A :class:`FeatureBatch` of n examples, in their order.

    Parameters
    ----------
    examples : n rows
        As they were handed in, index and other columns included.
    references
        Feast's names of all features, ``view:feature``.
    intervals
        View to the intervals that Feast had materialised, as pairs of ISO 8601 times.
    """

    examples: pd.DataFrame = field(default_factory=pd.DataFrame)
    references: tuple[str, ...] = ()
    intervals: Mapping[str, Sequence[tuple[str, str]]] = field(default_factory=dict)

    def to_pandas(self) -> pd.DataFrame:
        """Return ``examples`` plus one column per feature and pairwise feature, under the index of ``examples``.

        Vectors are float32 arrays of shape (d,), lists are lists; None where missing.
        """
        features = self._features_frame()
        features.index = self.examples.index
        return pd.concat([self.examples, features], axis=1)

    def to_arrow(self) -> pa.Table:
        """Return ``examples`` (without their index) plus one column per feature and pairwise feature.

        Numbers are float32, vectors lists of float32; null where missing.
        """
        table = pa.Table.from_pandas(self.examples, preserve_index=False)
        for name in self.columns:
            table = table.append_column(name, _as_arrow(self.column(name)))
        for place, name in enumerate(self.pairwise_names):
            table = table.append_column(name, _as_arrow(np.ascontiguousarray(self.pairwise[:, place])))
        return table.replace_schema_metadata(None)

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """What the set was made of, as JSON values.

        ``service``, ``features``, ``fingerprints`` (by view), ``bridges`` (by view), ``intervals`` (by view: the
        beginnings and ends that Feast had materialised), ``rows``, ``users`` and ``items`` (distinct ones at distinct
        times), ``nulls`` (examples without a value, by column) and ``time_range`` (first and last time; null without
        examples). Times are ISO 8601.
        """
        missing = {name: int(self._nulls(name).sum()) for name in self.columns}
        missing |= {name: int(np.isnan(self.pairwise[:, n]).sum()) for n, name in enumerate(self.pairwise_names)}
        times = self.examples[EVENT_TIMESTAMP]
        return {
            "service": self.service,
            "features": list(self.references),
            "fingerprints": dict(self.fingerprints),
            "bridges": dict(self.bridges),
            "intervals": {view: [list(pair) for pair in pairs] for view, pairs in self.intervals.items()},
            "rows": len(self),
            "users": len(self.user),
            "items": len(self.item),
            "nulls": missing,
            "time_range": [times.min().isoformat(), times.max().isoformat()] if len(self) else None,
        }

    def dataset(self, columns: Sequence[str] | None = None, *, directory: Path | str | None = None) -> ExampleDataset:
        """Return a torch ``Dataset`` whose ``__getitems__`` gathers a whole batch at once.

        A batch is a dict of tensors: each numeric feature (b,) and vector (b, d) by its full name, ``pairwise`` (b, P),
        each numeric column of ``examples`` by its own name (floats as float32, integers as int64), and ``rows`` (b,),
        the places of the examples in this set: :meth:`take` gives the rest, such as lists.

        Parameters
        ----------
        columns
            Features to include; None: all numbers and vectors.
        directory
            Write the values there, once each, and read batches from memory-mapped files, which other processes share;
            None: keep them in this process's memory.

        Raises
        ------
        ServiceError
            There is no such feature.
        SchemaError
            A column of ``examples`` is called ``pairwise`` or ``rows``.
        """
        from recsys_llm.retrieval.torch_dataset import ExampleDataset

        names = self._tensors() if columns is None else tuple(columns)
        shared: dict[str, Any] = {name: self._shared(name) for name in names}
        plain = {**self._example_tensors(), PAIRWISE_KEY: self.pairwise}
        dataset = ExampleDataset(len(self), shared | {name: (values, None) for name, values in plain.items()})
        return dataset if directory is None else dataset.mapped(directory)

    def loader(
        self,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        columns: Sequence[str] | None = None,
        workers: int = 0,
        pin_memory: bool | None = None,
    ) -> DataLoader[Any]:
        """Return a torch ``DataLoader`` over :meth:`dataset`.

        Parameters
        ----------
        batch_size
            Examples in a batch, 1 or more; the last one may be smaller.
        shuffle
            Draw a new order for each epoch; the orders depend on ``seed`` only.
        seed
            Of the order.
        columns
            As in :meth:`dataset`.
        workers
            Processes that gather batches; 0: this one. They map one temporary copy of the values on disk, which is gone
            with the loader; nothing large is sent to them.
        pin_memory
            Whether batches lie in pinned memory, from where a GPU copies them while it computes; None: where there is
            a CUDA device.
        """
        from recsys_llm.retrieval.torch_dataset import make_loader

        dataset = self.dataset(columns)
        return make_loader(
            dataset.mapped() if workers else dataset,
            batch_size,
            shuffle=shuffle,
            seed=seed,
            workers=workers,
            pin_memory=pin_memory,
        )

    def retrieval_job(self) -> RetrievalJob:
        """Return the set as a job of Feast's, for ``FeatureStore.create_saved_dataset(from_=...)``.

        ``FeatureStore.get_saved_dataset(name).to_df()`` then gives keys, times and features; the file that it is stored
        in also has the other columns of ``examples``.
        """
        from recsys_llm.retrieval.saved_dataset import TrainingJob

        return TrainingJob(self)

    def _tensors(self) -> tuple[str, ...]:
        return tuple(name for name in self.columns if isinstance(self._values(name), np.ndarray))

    def _values(self, name: str) -> Column:
        block, _ = self._side(name)
        return block.stored(name).values

    def _shared(self, name: str) -> tuple[Any, Any]:
        """Return the stored values of a feature, and which of them each example has."""
        block, rows = self._side(name)
        stored = block.stored(name)
        if not isinstance(stored.values, np.ndarray):
            raise SchemaError(
                f"feature {name}: expected numbers or a vector, found {stored.values.type}; use take(rows)"
            )
        return stored.values, stored.rows[rows]

    def _nulls(self, name: str) -> Any:
        block, rows = self._side(name)
        stored = block.stored(name)
        return nulls(stored.values)[stored.rows[rows]]

    def _example_tensors(self) -> Mapping[str, Any]:
        arrays = {}
        for name in self.examples.columns:
            values = self.examples[name]
            if not (pd.api.types.is_numeric_dtype(values.dtype) or pd.api.types.is_bool_dtype(values.dtype)):
                continue
            if name in (PAIRWISE_KEY, ROWS_KEY):
                raise SchemaError(f"examples: a batch has a part {name!r} of its own; rename the column")
            kind = np.float32 if pd.api.types.is_float_dtype(values.dtype) else np.int64
            arrays[str(name)] = values.to_numpy(dtype=kind)
        return arrays


def _as_arrow(column: Column) -> Any:
    if not isinstance(column, np.ndarray):
        return column
    if column.ndim == 1:
        return pa.array(column, type=pa.float32(), mask=np.isnan(column))
    missing = nulls(column)
    lengths = np.where(missing, 0, column.shape[1])
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
    values = pa.array(column[~missing].reshape(-1), type=pa.float32())
    lists = pa.LargeListArray.from_arrays(offsets, values)
    return lists.take(pa.array(np.arange(len(column)), mask=missing))
