"""The items that a model can predict, and the number of each."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from recsys_llm.errors import DataError

UNKNOWN = -1
"""Index of an item that is not in a vocabulary."""
FEW = 1000
"""Ids that are looked up one by one."""


@dataclass(frozen=True, eq=False)
class ItemVectors:
    """Text vectors of items, as an encoder made them.

    For training, only items whose text was known before the model's ``until``.

    Raises
    ------
    DataError
        Shapes don't match, an id is given twice, or a value is not finite.
    """

    item_ids: tuple[str, ...]
    vectors: npt.NDArray[np.float32]
    """(len(item_ids), dim)."""
    fingerprint: str
    """Of the encoder that made them."""

    def __post_init__(self) -> None:
        if self.vectors.ndim != 2 or len(self.vectors) != len(self.item_ids):
            found = f"{len(self.item_ids)} ids and vectors of shape {self.vectors.shape}"
            raise DataError(f"ItemVectors: expected one vector (row) per item id, found {found}")
        if len(set(self.item_ids)) != len(self.item_ids):
            raise DataError("ItemVectors: an item id is given twice; pass one vector per item, the newest")
        bad = np.flatnonzero(~np.isfinite(self.vectors).all(axis=1))
        if bad.size:
            raise DataError(f"ItemVectors: the vector of item {self.item_ids[bad[0]]!r} is not finite; encode it again")


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Item ids in string order; an item's index is its place."""

    item_ids: tuple[str, ...]

    @classmethod
    def build(cls, event_items: pa.Array, catalogue: tuple[str, ...] = ()) -> Vocabulary:
        """Return the vocabulary of the items in events and in a catalogue, both from before the model's ``until``.

        Examples
        --------
        >>> Vocabulary.build(pa.array(["b", "a", "b"]), ("c",)).item_ids
        ('a', 'b', 'c')
        """
        seen = set(pc.unique(event_items).to_pylist())
        return cls(tuple(sorted(seen.union(catalogue))))

    def __len__(self) -> int:
        return len(self.item_ids)

    @cached_property
    def names(self) -> npt.NDArray[np.object_]:
        """(V + 1,) the ids, then None: what index -1 names."""
        return np.array([*self.item_ids, None], object)

    @cached_property
    def _places(self) -> dict[str, int]:
        return {item: place for place, item in enumerate(self.item_ids)}

    def encode(self, item_ids: pa.Array) -> npt.NDArray[np.int64]:
        """Return the index of each id, int64 (n,); :data:`UNKNOWN` for others.

        Examples
        --------
        >>> Vocabulary(("a", "b")).encode(pa.array(["b", "z"])).tolist()
        [1, -1]
        """
        if len(item_ids) < FEW:  # a few events of a stream: arrow would hash the whole vocabulary for each call
            places = self._places
            return np.array([places.get(item, UNKNOWN) for item in item_ids.to_pylist()], np.int64)
        found = pc.index_in(item_ids, value_set=pa.array(self.item_ids, pa.string()))
        indexes: npt.NDArray[np.int64] = pc.fill_null(found, UNKNOWN).to_numpy(zero_copy_only=False).astype(np.int64)
        return indexes

    def aligned(self, item_vectors: ItemVectors) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """Return the vectors in vocabulary order, float32 (V, dim), zero where there is none, and which there are."""
        place = self.encode(pa.array(item_vectors.item_ids, pa.string()))
        known = place != UNKNOWN
        vectors = np.zeros((len(self), item_vectors.vectors.shape[1]), np.float32)
        vectors[place[known]] = item_vectors.vectors[known]
        present = np.zeros(len(self), np.bool_)
        present[place[known]] = True
        return vectors, present
