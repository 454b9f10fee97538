"""Features of a user and an item together, by one function for training and for serving.

A pair's values don't depend on what else is in the batch, to the last bit: dot products are sums along one row in a
fixed order (NumPy's pairwise summation), never a matrix product, whose order of addition depends on the shape.

A row that stands in for a user's own says what is liked in their segment or by everyone, on another scale than a
model's predictions: pairwise features count it as not known (NaN). What it holds is in the batch's own columns.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from recsys_llm.errors import ServiceError
from recsys_llm.retrieval.listed import elements_at, find_items
from recsys_llm.retrieval.stored import Rows, nulls
from recsys_llm.schema import CENTROID, EMBEDDING, ITEM_IDS, LOG_PROBS, NEXT_QUERY, NEXT_VECTOR

if TYPE_CHECKING:
    from recsys_llm.retrieval.blocks import EntityBlock

TEXT_COSINE: Final = "pairwise__text_cosine"
"""Cosine of the user's and the item's text vector."""
CENTROID_COSINE: Final = "pairwise__centroid_cosine"
"""Cosine of the item's text vector to the mean text vector of the user's predicted next items."""
NEXT_RECIPROCAL_RANK: Final = "pairwise__next_reciprocal_rank"
"""1 / the item's place in the user's predicted next items; 0 where it isn't among them."""
NEXT_LISTED: Final = "pairwise__next_listed"
"""1 where the item is among the user's predicted next items, else 0."""
NEXT_LOG_PROB: Final = "pairwise__next_log_prob"
"""Log-probability of the item as the user's next; NaN where it isn't among the predicted ones."""

NEXT_SCORE: Final = "pairwise__next_score"
"""Log-probability of the item as the user's next, listed or not; NaN where the model doesn't know the item."""

PAIRWISE: Final = (TEXT_COSINE, CENTROID_COSINE, NEXT_RECIPROCAL_RANK, NEXT_LISTED, NEXT_LOG_PROB, NEXT_SCORE)
"""All pairwise features, in the order of the columns of ``FeatureBatch.pairwise``. A service has those that its columns
allow; each is NaN where one of its inputs is missing, or is not the user's own (``Status.FALLBACK``)."""

CHUNK_ROWS = 1024
"""Pairs gathered at a time: 1024 x 384 floats fit the cache."""


@dataclass(frozen=True)
class PairwiseInputs:
    """The columns that pairwise features are made from; None where the service has none."""

    user_text: str | None = None
    item_text: str | None = None
    centroid: str | None = None
    next_items: str | None = None
    next_log_probs: str | None = None
    next_query: str | None = None
    next_vector: str | None = None

    @classmethod
    def of(cls, user_columns: Iterable[str], item_columns: Iterable[str]) -> PairwiseInputs:
        """Find the inputs among full feature names.

        Raises
        ------
        ServiceError
            Two columns could be the input: the service has two versions of a view.

        Examples
        --------
        >>> PairwiseInputs.of(["a__embedding"], ["b__embedding", "b__price"]).names
        ('pairwise__text_cosine',)
        """
        user, item = list(user_columns), list(item_columns)
        return cls(
            user_text=_only(user, EMBEDDING),
            item_text=_only(item, EMBEDDING),
            centroid=_only(user, CENTROID),
            next_items=_only(user, ITEM_IDS),
            next_log_probs=_only(user, LOG_PROBS),
            next_query=_only(user, NEXT_QUERY),
            next_vector=_only(item, NEXT_VECTOR),
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the pairwise features that these inputs allow, in the order of :data:`PAIRWISE`."""
        allowed = {
            TEXT_COSINE: self.user_text and self.item_text,
            CENTROID_COSINE: self.centroid and self.item_text,
            NEXT_RECIPROCAL_RANK: self.next_items,
            NEXT_LISTED: self.next_items,
            NEXT_LOG_PROB: self.next_items and self.next_log_probs,
            NEXT_SCORE: self.next_query and self.next_vector,
        }
        return tuple(name for name in PAIRWISE if allowed[name])

    def user_column(self, name: str) -> str:
        """Return the user's column that the pairwise feature ``name`` is made from."""
        made_from = {TEXT_COSINE: self.user_text, CENTROID_COSINE: self.centroid, NEXT_SCORE: self.next_query}
        column = made_from.get(name, self.next_items)
        if column is None:
            raise ServiceError(f"pairwise features: {name} has no input here; ask for one of {', '.join(self.names)}")
        return column


def _only(columns: list[str], feature: str) -> str | None:
    found = [column for column in columns if column.endswith(f"__{feature}")]
    if len(found) > 1:
        raise ServiceError(
            f"pairwise features need one column {feature!r} per entity, found {' and '.join(found)}; "
            "keep one version of the view in the feature service"
        )
    return found[0] if found else None


def pairwise_features(
    user: EntityBlock, item: EntityBlock, user_rows: Rows, item_rows: Rows, inputs: PairwiseInputs
) -> npt.NDArray[np.float32]:
    """Return the pairwise features of n pairs.

    Parameters
    ----------
    user, item
        Features of the distinct users and items.
    user_rows, item_rows
        int64 (n,): the rows that make each pair.
    inputs
        Which columns to use.

    Returns
    -------
    float32 (n, P)
        Columns as in ``inputs.names``.
    """
    features: dict[str, npt.NDArray[np.float32]] = {}
    if inputs.item_text and inputs.user_text:
        features[TEXT_COSINE] = _cosine(user, inputs.user_text, user_rows, item, inputs.item_text, item_rows)
    if inputs.item_text and inputs.centroid:
        features[CENTROID_COSINE] = _cosine(user, inputs.centroid, user_rows, item, inputs.item_text, item_rows)
    if inputs.next_items:
        features |= _in_list(user, item, user_rows, item_rows, inputs.next_items, inputs.next_log_probs)
    if inputs.next_query and inputs.next_vector:
        features[NEXT_SCORE] = _dots(user, inputs.next_query, user_rows, item, inputs.next_vector, item_rows)
    columns = [features[name] for name in inputs.names]
    if not columns:
        return np.empty((len(user_rows), 0), dtype=np.float32)
    values = np.stack(columns, axis=1)
    for place, name in enumerate(inputs.names):
        others = not_own(user, inputs.user_column(name))
        if others.any():
            values[others[user_rows], place] = np.nan
    return values


def not_own(user: EntityBlock, column: str) -> npt.NDArray[np.bool_]:
    """Return bool (m,): for which of the users the value of ``column`` is that of their segment, or of everyone."""
    from recsys_llm.retrieval.blocks import Status  # which imports this module

    status = user.status.get(column.split("__")[0])
    return np.zeros(len(user), np.bool_) if status is None else np.asarray(status == Status.FALLBACK)


def row_norms(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the Euclidean norm of each row of float32 (m, d): float32 (m,)."""
    norms = np.empty(len(vectors), dtype=np.float32)
    for start in range(0, len(vectors), CHUNK_ROWS):
        rows = vectors[start : start + CHUNK_ROWS]
        norms[start : start + CHUNK_ROWS] = np.sqrt(_row_sums(np.multiply(rows, rows, order="C")))
    return norms


def _row_sums(products: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Sum each row of a C-contiguous array; the order of addition depends on the length of a row only."""
    sums: npt.NDArray[np.float32] = np.add.reduce(products, axis=1)
    return sums


def _cosine(
    user: EntityBlock, user_column: str, user_rows: Rows, item: EntityBlock, item_column: str, item_rows: Rows
) -> npt.NDArray[np.float32]:
    dots = _dots(user, user_column, user_rows, item, item_column, item_rows)
    left_rows, right_rows = user.stored(user_column).rows[user_rows], item.stored(item_column).rows[item_rows]
    lengths = user.norms(user_column)[left_rows] * item.norms(item_column)[right_rows]
    with np.errstate(divide="ignore", invalid="ignore"):
        cosine = dots / lengths
    cosine[~np.isfinite(cosine)] = np.nan
    return cosine


def _dots(
    user: EntityBlock, user_column: str, user_rows: Rows, item: EntityBlock, item_column: str, item_rows: Rows
) -> npt.NDArray[np.float32]:
    left, right = user.stored(user_column), item.stored(item_column)
    left_rows, right_rows = left.rows[user_rows], right.rows[item_rows]
    if left.values.shape[1] != right.values.shape[1]:
        if np.isnan(left.values).all() or np.isnan(right.values).all():
            # Nothing is known of one side, not even the length of its vectors.
            return np.full(len(user_rows), np.nan, dtype=np.float32)
        raise ServiceError(
            f"product of {user_column} and {item_column}: expected vectors of one length, found "
            f"{left.values.shape[1]} and {right.values.shape[1]}; use views of one model"
        )
    dots = np.empty(len(user_rows), dtype=np.float32)
    for start in range(0, len(user_rows), CHUNK_ROWS):
        chunk = slice(start, start + CHUNK_ROWS)
        one, other = _rows_of(left.values, left_rows[chunk]), _full(right.values, right_rows[chunk])
        dots[chunk] = _row_sums(np.multiply(one, other, order="C"))
    return dots


def _rows_of(values: npt.NDArray[np.float32], rows: Rows) -> npt.NDArray[np.float32]:
    """Gather rows; one that all pairs share is broadcast."""
    if len(rows) and (rows == rows[0]).all():
        return values[rows[0] : rows[0] + 1]
    return _full(values, rows)


def _full(values: npt.NDArray[np.float32], rows: Rows) -> npt.NDArray[np.float32]:
    """Gather rows; consecutive ones are a view."""
    if len(rows) and rows[-1] - rows[0] == len(rows) - 1 and (np.diff(rows) == 1).all():
        return values[rows[0] : rows[-1] + 1]
    return np.take(values, rows, axis=0)


def _in_list(
    user: EntityBlock, item: EntityBlock, user_rows: Rows, item_rows: Rows, ids_column: str, probs_column: str | None
) -> dict[str, npt.NDArray[np.float32]]:
    """Return where each pair's item is in its user's list: one sorted search over all (list, item) keys."""
    lists = user.stored(ids_column)
    pair_lists = lists.rows[user_rows]
    found = find_items(lists.values, item, np.unique(pair_lists))
    keys = found.owners * found.width + found.elements
    order = np.argsort(keys, kind="stable")  # of an item listed twice, the first place counts
    keys, places = keys[order], found.places[order]
    wanted = pair_lists * found.width + found.codes[item_rows] if len(item_rows) else np.empty(0, dtype=np.int64)
    at = np.searchsorted(keys, wanted)
    listed = at < len(keys)
    listed[listed] = keys[at[listed]] == wanted[listed]
    rank = np.zeros(len(wanted), dtype=np.float32)
    rank[listed] = np.float32(1) / (places[at[listed]] + 1).astype(np.float32)
    flag = listed.astype(np.float32)
    unknown = nulls(lists.values)[pair_lists]
    rank[unknown] = flag[unknown] = np.nan
    features = {NEXT_RECIPROCAL_RANK: rank, NEXT_LISTED: flag}
    if probs_column:
        pairs = np.flatnonzero(listed)
        probs = user.stored(probs_column)
        features[NEXT_LOG_PROB] = np.full(len(wanted), np.nan, dtype=np.float32)
        features[NEXT_LOG_PROB][pairs] = elements_at(
            probs.values, probs.rows[user_rows[pairs]], places[at[pairs]], f"{probs_column} and {ids_column}"
        )
    return features
