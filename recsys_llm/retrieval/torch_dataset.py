"""A torch ``Dataset`` that gathers whole batches, from memory or from memory-mapped files.

Imported where it is needed only: importing torch takes a second.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset

from recsys_llm.errors import RetrievalError

Batch = dict[str, torch.Tensor]
Array = npt.NDArray[Any]

ROWS_KEY = "rows"
SPARES = 2
"""Arrays of a column that are kept to be filled again: of a batch, and of the one that is made while it is used."""
LARGER = 4
"""Memory more than so many times larger than a batch is not kept for it."""
PICKLED_BYTES = 64 * 2**20
"""A dataset in memory that is larger is not sent to other processes."""


class MappedArray:
    """An array in a .npy file; other processes are sent the path and map the same pages."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._array: Array | None = None

    def array(self) -> Array:
        """Return the array; it is mapped at first use, and read as rows are asked for."""
        if self._array is None:
            self._array = np.asarray(np.load(self.path, mmap_mode="r", allow_pickle=False))
        return self._array

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_array": None}


class Spares:
    """Memory of batches that nobody holds any more: fresh memory costs as much as what is gathered into it."""

    def __init__(self) -> None:
        self._free: dict[str, list[Array]] = {}

    def take(self, column: str, values: Array, places: Array) -> Array:
        """Return ``values`` at ``places`` along the first axis, as ``np.take`` does.

        Views of it may be kept only through an owner, such as a tensor, that keeps the array itself.
        """
        if values.ndim < 2 or not len(places) or places.min() < 0 or places.max() >= len(values):
            return np.take(values, places, axis=0)
        free = self._free.setdefault(column, [])
        try:
            whole = free.pop()
        except IndexError:
            whole = np.empty((0, *values.shape[1:]), dtype=values.dtype)
        if not len(places) <= len(whole) <= LARGER * len(places):
            whole = np.empty((len(places), *values.shape[1:]), dtype=values.dtype)
        taken = whole[: len(places)]
        weakref.finalize(taken, _give_back, free, whole).atexit = False
        # Places were compared: "clip" has nothing to clip, and unlike "raise" needs no copy.
        return np.take(values, places, axis=0, out=taken, mode="clip")


def _give_back(free: list[Array], whole: Array) -> None:
    if len(free) < SPARES:
        free.append(whole)


class ExampleDataset(Dataset[Batch]):
    """Examples as rows of stored values.

    Parameters
    ----------
    length
        Number of examples.
    columns
        By name in a batch: stored values (m, ...), and which of them each example has (int64 (n,)); None: as they are.
    """

    def __init__(
        self, length: int, columns: Mapping[str, tuple[Array | MappedArray, Array | MappedArray | None]]
    ) -> None:
        self._length = length
        self._columns = dict(columns)
        self._mapped = False
        self._spares = Spares()

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, row: int) -> Batch:
        return {name: tensor[0] for name, tensor in self.__getitems__([row]).items()}

    def __getitems__(self, rows: Sequence[int]) -> Batch:
        """Return one batch of these examples."""
        # np.take on one thread: torch's own indexing on several threads is slower by far.
        at = np.asarray(rows, dtype=np.int64)
        batch = {}
        for name, (values, where) in self._columns.items():
            places = at if where is None else np.take(_array(where), at)
            batch[name] = torch.from_numpy(self._spares.take(name, _array(values), places))
        return batch | {ROWS_KEY: torch.from_numpy(at)}

    def mapped(self, directory: Path | str | None = None) -> ExampleDataset:
        """Write all arrays to files and return a dataset that maps them.

        Parameters
        ----------
        directory
            Where the files go, and stay; None: a temporary folder, gone with the dataset.

        Raises
        ------
        RetrievalError
            The folder holds arrays already, which another dataset may have mapped.
        """
        temporary = directory is None
        folder = Path(tempfile.mkdtemp(prefix="recsys_llm_examples_")) if directory is None else Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.glob("*.npy")):
            raise RetrievalError(f"dataset: expected a folder without arrays, found some in {folder}; name another one")
        files: dict[int, MappedArray] = {}

        def stored(array: Array) -> Array | MappedArray:
            if not array.size:  # nothing can't be mapped
                return array
            if id(array) not in files:
                path = folder / f"array_{len(files)}.npy"
                np.save(path, array, allow_pickle=False)
                files[id(array)] = MappedArray(path)
            return files[id(array)]

        arrays = {
            name: (_array(values), None if where is None else _array(where))
            for name, (values, where) in self._columns.items()
        }
        made = ExampleDataset(
            self._length,
            {
                name: (stored(values), None if where is None else stored(where))
                for name, (values, where) in arrays.items()
            },
        )
        made._mapped = True
        if temporary:
            weakref.finalize(made, _remove, folder, os.getpid())
        return made

    def __getstate__(self) -> dict[str, Any]:
        if not self._mapped:
            size = sum(
                array.nbytes for pair in self._columns.values() for array in pair if isinstance(array, np.ndarray)
            )
            if size > PICKLED_BYTES:
                raise RetrievalError(
                    f"dataset: {size / 2**20:,.0f} MiB would be copied to another process; use loader(workers=...), or "
                    "dataset(directory=...), which other processes map"
                )
        return self.__dict__ | {"_spares": Spares()}


def make_loader(
    dataset: ExampleDataset, batch_size: int, *, shuffle: bool, seed: int, workers: int, pin_memory: bool | None
) -> DataLoader[Any]:
    """Return a loader of whole batches; see :meth:`recsys_llm.retrieval.training.TrainingSet.loader`."""
    return DataLoader(
        dataset,
        batch_size=batch_size,
        shuffle=shuffle,
        generator=torch.Generator().manual_seed(seed),
        collate_fn=_whole,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available() if pin_memory is None else pin_memory,
    )


def _array(values: Array | MappedArray) -> Array:
    return values.array() if isinstance(values, MappedArray) else values


def _whole(batch: Any) -> Any:
    """Return what ``__getitems__`` gathered: there is nothing left to collate."""
    return batch


def _remove(folder: Path, process: int) -> None:
    # A forked worker has a copy of the dataset: its end isn't that of the files.
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)
