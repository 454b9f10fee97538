"""Strong baselines without learning: item-kNN of a user's recent items, and what follows the last basket.

Both are sparse item-to-item matrices counted on events strictly before one moment. They read a user's state only from
``user_stats`` (``recent_items``, newest first, and ``last_group_size``), so they score offline and online alike.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
from scipy import sparse

from recsys_llm.errors import CheckpointError, LeakageError, TrainingError
from recsys_llm.ranking.bundle import read_bundle, write_bundle
from recsys_llm.ranking.events import Events, Floats, Ints, Strings, entries, read_events
from recsys_llm.ranking.products import matrix, pick, top_products
from recsys_llm.timestamps import from_micros, to_micros

KIND = "cooccurrence"


@dataclass(frozen=True)
class CooccurrenceConfig:
    """How items are counted together."""

    neighbours: int = 200
    """Most similar items kept for each item, 1 or more."""
    successors: int = 200
    """Most frequent successors kept for each item, 1 or more."""
    decay: float = 0.9
    """Weight of a recent item relative to the next newer one, above 0 up to 1."""
    shrinkage: float = 5.0
    """Users added to both items' counts before similarity, 0 or more: rare pairs prove little."""

    def __post_init__(self) -> None:
        if self.neighbours < 1 or self.successors < 1 or not 0 < self.decay <= 1 or self.shrinkage < 0:
            raise TrainingError(
                "cooccurrence: expected neighbours and successors >= 1, 0 < decay <= 1 and shrinkage >= 0, found "
                f"{self}; change them"
            )


@dataclass(frozen=True, eq=False)
class CooccurrenceModel:
    """Item-to-item scores.

    Attributes
    ----------
    item_ids : object (I,)
        Items with an event before ``until``, sorted.
    neighbours : float32 CSR (I, I)
        Similarity of a row's item to each column's, 0 on the diagonal.
    successors : float32 CSR (I, I)
        Share of the row's baskets that the column's item followed in the next basket of the same user.
    until
        Only events strictly before it were counted.
    """

    item_ids: Strings
    neighbours: Any
    successors: Any
    until: datetime
    config: CooccurrenceConfig

    @classmethod
    def fit(
        cls, interactions: pa.Table | pd.DataFrame, until: datetime, config: CooccurrenceConfig | None = None
    ) -> CooccurrenceModel:
        """Count a canonical interactions table whose every event is strictly before ``until``.

        Raises
        ------
        LeakageError
            An event is at or after ``until``.
        TrainingError
            There are no events.
        """
        config = config or CooccurrenceConfig()
        events, limit = read_events(interactions), to_micros(until)
        late = int((events.micros >= limit).sum())
        if late:
            raise LeakageError(
                f"cooccurrence: expected only events strictly before {from_micros(limit)}, found {late} of "
                f"{len(events)} at or after it, up to {from_micros(int(events.micros.max()))}; filter the table first"
            )
        if not len(events):
            raise TrainingError("cooccurrence: expected at least one event, found none; choose a later `until`")
        return cls(
            events.item_ids, _similarities(events, config), _transitions(events, config), from_micros(limit), config
        )

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, hex, of everything that a score depends on."""
        digest = hashlib.sha256("\0".join([*self.item_ids, repr(self.config), str(to_micros(self.until))]).encode())
        for counted in (self.neighbours, self.successors):
            for part in (counted.indptr.astype(np.int64), counted.indices.astype(np.int32), counted.data):
                digest.update(part.tobytes())
        return digest.hexdigest()

    def codes(self, item_ids: Strings) -> Ints:
        """Return the position of each id in ``item_ids``; -1 for an item without an event before ``until``."""
        return np.asarray(self._index.get_indexer(pd.Index(item_ids, dtype=object)), dtype=np.int64)

    @cached_property
    def _index(self) -> pd.Index[Any]:
        return pd.Index(self.item_ids)

    def recent(self, recent_items: pa.Array) -> Any:
        """Return float32 CSR (users, I): each user's recent items, weighted by ``decay ** (0, 1, 2, ...)``.

        Parameters
        ----------
        recent_items : list<string>, one entry per user
            Newest first; null or empty where nothing is known.
        """
        rows, place, values = entries(recent_items)
        return self._weights(rows, values, np.power(self.config.decay, place), len(recent_items))

    def last_basket(self, recent_items: pa.Array, sizes: Floats) -> Any:
        """Return float32 CSR (users, I): ``1 / size`` for each item of the user's last basket.

        Parameters
        ----------
        recent_items : list<string>, one entry per user
            Newest first.
        sizes : float32 (users,)
            How many of them, from the front, were had together last; NaN counts as none.
        """
        rows, place, values = entries(recent_items)
        size = np.nan_to_num(sizes, nan=0.0)
        lengths = np.bincount(rows, minlength=len(recent_items))
        within = place < size[rows]
        share = 1 / np.maximum(np.minimum(size, lengths), 1)
        return self._weights(rows[within], values[within], share[rows[within]], len(recent_items))

    def neighbour_scores(self, recent: Any, user_rows: Ints, codes: Ints) -> Floats:
        """Return float32 (n,): weighted similarity of candidate ``codes`` to the recent items of ``user_rows``."""
        return pick(recent, self.neighbours, user_rows, codes)

    def successor_scores(self, last_basket: Any, user_rows: Ints, codes: Ints) -> Floats:
        """Return float32 (n,): mean transition share from the last basket of ``user_rows`` to candidate ``codes``."""
        return pick(last_basket, self.successors, user_rows, codes)

    def state(self) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
        """Return tensors and JSON values that :meth:`from_state` makes an equal model of."""
        tensors = {
            f"{name}_{part}": getattr(counted, part)
            for name, counted in (("neighbours", self.neighbours), ("successors", self.successors))
            for part in ("indptr", "indices", "data")
        }
        config = dataclasses.asdict(self.config)
        return tensors, {"item_ids": list(self.item_ids), "until": to_micros(self.until), "config": config}

    @classmethod
    def from_state(cls, tensors: Mapping[str, npt.NDArray[Any]], facts: Mapping[str, Any]) -> CooccurrenceModel:
        """Return the model of a :meth:`state`; KeyError, TypeError or ValueError if it is none."""
        ids = np.empty(len(facts["item_ids"]), dtype=object)
        ids[:] = facts["item_ids"]
        counted = [
            sparse.csr_array(
                tuple(tensors[f"{name}_{part}"] for part in ("data", "indices", "indptr")), shape=(len(ids), len(ids))
            )
            for name in ("neighbours", "successors")
        ]
        return cls(ids, counted[0], counted[1], from_micros(facts["until"]), CooccurrenceConfig(**facts["config"]))

    def save(self, directory: Path | str) -> None:
        """Write the model as safetensors and JSON with SHA-256."""
        write_bundle(directory, KIND, *self.state())

    @classmethod
    def load(cls, directory: Path | str) -> CooccurrenceModel:
        """Read a model that :meth:`save` wrote.

        Raises
        ------
        CheckpointError
            A file is missing or altered.
        """
        tensors, facts = read_bundle(directory, KIND)
        try:
            return cls.from_state(tensors, facts)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{directory}: expected a cooccurrence model, found {error!r}; fit it again"
            ) from None

    def _weights(self, rows: Ints, item_ids: Strings, weights: npt.NDArray[np.floating], users: int) -> Any:
        codes = self.codes(item_ids)
        known = codes >= 0
        return matrix(rows[known], codes[known], weights[known], users, len(self.item_ids))


def _similarities(events: Events, config: CooccurrenceConfig) -> Any:
    """Return the shrunk cosine of items over users, the best ``neighbours`` of each; long lists weigh less."""
    pairs = np.unique(events.users * len(events.item_ids) + events.items)
    users, items = np.divmod(pairs, len(events.item_ids))
    length = np.bincount(users)[users]
    liked = matrix(users, items, 1 / np.sqrt(np.log1p(length)), len(events.user_ids), len(events.item_ids))
    norm = np.sqrt(np.bincount(items, weights=1 / np.log1p(length)) + config.shrinkage)

    def scale(block: Any, first: int) -> Any:
        rows, columns = block.coords
        keep = rows + first != columns
        values = block.data[keep] / norm[first + rows[keep]] / norm[columns[keep]]
        return sparse.coo_array((values, (rows[keep], columns[keep])), shape=block.shape)

    return top_products(liked, liked, scale, config.neighbours)


def _transitions(events: Events, config: CooccurrenceConfig) -> Any:
    """Return how often each item's baskets were followed by each item, the best ``successors`` of each."""
    size = len(events.item_ids)
    basket = events.baskets()
    first = np.flatnonzero(np.diff(basket, prepend=-1))
    order = np.argsort(events.users[first], kind="stable")  # baskets by user, in time
    follows = np.flatnonzero(np.diff(events.users[first][order]) == 0)
    step = np.full(len(first), -1)
    step[order[follows]] = np.arange(len(follows))
    before = step[basket]
    step = np.full(len(first), -1)
    step[order[follows + 1]] = np.arange(len(follows))
    after = step[basket]
    one = np.ones(len(events), np.float32)
    left = matrix(before[before >= 0], events.items[before >= 0], one[before >= 0], len(follows), size)
    right = matrix(after[after >= 0], events.items[after >= 0], one[after >= 0], len(follows), size)
    count = np.bincount(events.items, minlength=size)

    def scale(block: Any, first: int) -> Any:
        return sparse.coo_array((block.data / count[first + block.coords[0]], block.coords), shape=block.shape)

    return top_products(left, right, scale, config.successors)
