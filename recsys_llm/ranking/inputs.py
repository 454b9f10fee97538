"""What the ranker looks at: one float32 column per fact about a user and a candidate. NaN means not known.

The same function makes the columns for training and for serving, from the same structure
(:class:`recsys_llm.retrieval.blocks.FeatureBatch`), so that they can't drift apart.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from scipy import sparse

from recsys_llm import schema
from recsys_llm.errors import ServiceError, did_you_mean
from recsys_llm.ranking.cooccurrence import CooccurrenceModel
from recsys_llm.ranking.events import Floats, Ints, entries
from recsys_llm.ranking.products import matrix, pick
from recsys_llm.retrieval.blocks import EntityBlock, FeatureBatch
from recsys_llm.retrieval.pairwise import not_own
from recsys_llm.schema import ITEM_STATS, USER_NEXT_ITEMS, USER_STATS, feature_column

BASELINE_COLUMNS = (
    "item_log_events",
    "item_log_events_30d",
    "item_mean_rating",
    "item_log_price",
    "user_log_events",
    "user_mean_rating",
    "user_log_last_basket",
    "log_price_ratio",
    "category_affinity",
    "log_repeats",
    "recency",
    "item_knn",
    "transition",
)
"""Columns made from ``item_stats`` and ``user_stats`` alone."""
ENTROPY_COLUMN = "next_items_entropy"


@dataclass(frozen=True, eq=False)
class RankerInputs:
    """Makes the ranker's columns from a batch.

    Attributes
    ----------
    cooccurrence
        For ``item_knn`` and ``transition``.
    pairwise
        Names of the batch's pairwise columns that are used, in order; empty for a ranker without learned features.
    """

    cooccurrence: CooccurrenceModel
    pairwise: tuple[str, ...] = ()
    _cache: list[_Cached] = field(default_factory=list, init=False, repr=False)

    @property
    def names(self) -> tuple[str, ...]:
        """Column names, in the order of :meth:`matrix`."""
        return (*BASELINE_COLUMNS, ENTROPY_COLUMN, *self.pairwise) if self.pairwise else BASELINE_COLUMNS

    def matrix(self, batch: FeatureBatch, pairwise: Floats | None = None) -> Floats:
        """Return float32 (n, F), one column per name, C-contiguous; NaN where a fact is not known.

        Parameters
        ----------
        batch : n pairs
        pairwise : float32 (n, P)
            ``batch.pairwise`` where it is at hand; None: computed if it is needed.

        Raises
        ------
        ServiceError
            The batch lacks a feature or a pairwise column.
        """
        sides = self._sides(batch)
        users, items = batch.user_rows, batch.item_rows
        result = np.empty((len(users), len(self.names)), np.float32)
        result[:, 0:4] = sides.item_columns[items]
        result[:, 4:7] = sides.user_columns[users]
        result[:, 7] = sides.item_columns[items, 3] - sides.user_log_price[users]
        result[:, 8] = pick(sides.shares, sides.categories, users, sides.category_codes[items])
        result[:, 9] = np.log1p(pick(sides.repeats, sides.identity, users, sides.own_codes[items]))
        result[:, 10] = pick(sides.recency, sides.identity, users, sides.own_codes[items])
        codes = sides.item_codes[items]
        result[:, 11] = log_score(self.cooccurrence.neighbour_scores(sides.recent, users, codes))
        result[:, 12] = log_score(self.cooccurrence.successor_scores(sides.last_basket, users, codes))
        if self.pairwise:
            result[:, 13] = _entropy(batch)
            result[:, 14:] = _pairwise(batch, self.pairwise, pairwise)
        return result

    def _sides(self, batch: FeatureBatch) -> _Sides:
        """Return what depends on the two blocks alone; an evaluation scores many batches over the same blocks."""
        cached = self._cache[0] if self._cache else None
        if cached is not None and cached.user() is batch.user and cached.item() is batch.item:
            return cached.sides
        sides = _prepare(batch.user, batch.item, self.cooccurrence)
        self._cache[:] = [_Cached(weakref.ref(batch.user), weakref.ref(batch.item), sides)]
        return sides


def log_score(scores: Floats) -> Floats:
    """Return ``log(1e-4 + score)``: co-occurrence spans orders of magnitude, and zero must stay near the small ones."""
    return np.asarray(np.log(scores + np.float32(1e-4)), np.float32)


@dataclass(frozen=True, eq=False)
class _Sides:
    item_columns: Floats  # (I, 4)
    user_columns: Floats  # (U, 3)
    user_log_price: Floats  # (U,)
    category_codes: Ints  # (I,) the item's category text, -1 where there is none
    categories: Any  # CSR (names, texts): which names a text holds
    shares: Any  # CSR (U, names)
    own_codes: Ints  # (I,) number of the item's id among the ids of both blocks
    identity: Any  # CSR (ids, ids)
    repeats: Any  # CSR (U, ids): times
    recency: Any  # CSR (U, ids): 1 / (1 + place) of the newest time
    item_codes: Ints  # (I,) in the co-occurrence model
    recent: Any  # CSR (U, items of the co-occurrence model)
    last_basket: Any


@dataclass(frozen=True, eq=False)
class _Cached:
    user: Callable[[], EntityBlock | None]
    item: Callable[[], EntityBlock | None]
    sides: _Sides


def _prepare(user: EntityBlock, item: EntityBlock, model: CooccurrenceModel) -> _Sides:
    size = _column(user, USER_STATS, schema.LAST_GROUP_SIZE)
    recent = _column(user, USER_STATS, schema.RECENT_ITEMS)
    rows, places, values = entries(recent)
    item_ids = np.asarray(item.ids, dtype=object)
    codes, ids = pd.factorize(np.concatenate([item_ids, values]))
    own, had = codes[: len(item_ids)].astype(np.int64), codes[len(item_ids) :].astype(np.int64)
    _, newest = np.unique(rows * len(ids) + had, return_index=True)
    shape = (len(user.ids), len(ids))
    category_codes, names, categories = _categories(_column(item, ITEM_STATS, schema.CATEGORY))
    return _Sides(
        item_columns=np.stack(
            [
                np.log1p(_column(item, ITEM_STATS, schema.N_EVENTS)),
                np.log1p(_column(item, ITEM_STATS, schema.N_EVENTS_30D)),
                _column(item, ITEM_STATS, schema.MEAN_RATING),
                _log(_column(item, ITEM_STATS, schema.PRICE)),
            ],
            axis=1,
        ),
        user_columns=np.stack(
            [
                np.log1p(_column(user, USER_STATS, schema.N_EVENTS)),
                _column(user, USER_STATS, schema.MEAN_RATING),
                np.log1p(size),
            ],
            axis=1,
        ),
        user_log_price=_log(_column(user, USER_STATS, schema.MEAN_PRICE)),
        category_codes=category_codes,
        categories=categories,
        shares=_shares(user, names),
        own_codes=own,
        identity=sparse.eye_array(len(ids), dtype=np.float32, format="csr"),
        repeats=matrix(rows, had, np.ones(len(had)), *shape),
        recency=matrix(rows[newest], had[newest], 1 / (1 + places[newest]), *shape),
        item_codes=model.codes(item_ids),
        recent=model.recent(recent),
        last_basket=model.last_basket(recent, size),
    )


def _categories(texts: pa.Array) -> tuple[Ints, list[str], Any]:
    """Return each item's text number (-1: none), the distinct category names, and which names each text holds."""
    codes, distinct = pd.factorize(np.asarray(texts.to_numpy(zero_copy_only=False), dtype=object))
    split = [category_names(text) for text in distinct]
    numbers = {name: number for number, name in enumerate(sorted({name for names in split for name in names}))}
    columns = np.repeat(np.arange(len(split)), [len(names) for names in split])
    rows = np.array([numbers[name] for names in split for name in names], np.int64)
    holds = matrix(rows, columns, np.ones(len(rows)), len(numbers) + 1, len(split))  # the last row: any other name
    empty = np.array([not names for names in split] + [True])
    codes = np.where(empty[codes], -1, codes)
    return codes.astype(np.int64), list(numbers), holds


def category_names(text: str) -> list[str]:
    """Return the distinct names in a comma-separated text, in order.

    Examples
    --------
    >>> category_names("Comedy, Drama,,Comedy ")
    ['Comedy', 'Drama']
    """
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def _shares(user: EntityBlock, names: list[str]) -> Any:
    """Return CSR (U, names + 1): each user's share of each name; the last column holds names that no item has."""
    rows, _, found = entries(_column(user, USER_STATS, schema.CATEGORIES))
    _, _, shares = entries(_column(user, USER_STATS, schema.CATEGORY_SHARES))
    if len(found) != len(shares):
        raise ServiceError(
            f"{USER_STATS}: expected as many category_shares as categories, found {len(shares)} and {len(found)}; "
            "materialise the view again"
        )
    columns = np.asarray(pd.Index(names, dtype=object).get_indexer(pd.Index(found, dtype=object)), np.int64)
    columns[columns < 0] = len(names)
    return matrix(rows, columns, np.asarray(shares, np.float32), len(user.ids), len(names) + 1)


def _log(values: Floats) -> Floats:
    """Return the logarithm; NaN where a value is not above 0 (a gift has no price level)."""
    return np.log(np.where(values > 0, values, np.float32(np.nan)))


def _column(block: EntityBlock, view: str, feature: str) -> Any:
    name = feature_column(view, feature)
    if name not in block.columns:
        raise ServiceError(f"{block.entity}: expected the feature {name}; {did_you_mean(name, block.columns)}")
    return block.columns[name]


def _entropy(batch: FeatureBatch) -> Floats:
    """Return the next items' entropy, from whatever version of the view the service reads; NaN where not the user's."""
    listed = batch.pairwise_inputs.next_items
    name = feature_column(USER_NEXT_ITEMS if listed is None else listed.split("__")[0], schema.ENTROPY)
    return np.where(not_own(batch.user, name)[batch.user_rows], np.float32(np.nan), batch.scalar(name))


def _pairwise(batch: FeatureBatch, names: tuple[str, ...], values: Floats | None) -> Floats:
    found = list(batch.pairwise_names)
    missing = [name for name in names if name not in found]
    if missing:
        raise ServiceError(
            f"pairwise features: expected {', '.join(names)}, found {', '.join(found) or 'none'} in the service "
            f"{batch.service!r}; read the service that the ranker was trained on"
        )
    return (batch.pairwise if values is None else values)[:, [found.index(name) for name in names]]
