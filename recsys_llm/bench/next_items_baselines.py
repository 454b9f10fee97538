"""Contestants without gradient descent: popularity, transitions, item-kNN and EASE.

Each is counted on groups strictly before a time. A prediction reads, besides, its own user's earlier groups. Settings
are chosen by NDCG@10 on the validation slice, which lies before T; then everything before T is counted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy import linalg, sparse

from recsys_llm.bench.next_items_scoring import Scorer, validation_ndcg
from recsys_llm.bench.next_items_world import Tasks, World
from recsys_llm.errors import DataError
from recsys_llm.ranking.cooccurrence import CooccurrenceConfig, CooccurrenceModel
from recsys_llm.schema import EVENT_TIMESTAMP, ITEM_ID, USER_ID
from recsys_llm.seqgan.histories import Ints
from recsys_llm.seqgan.sequences import Sequences, ranges
from recsys_llm.timestamps import TIMESTAMP, from_micros

Settings = dict[str, float]
Grid = dict[str, tuple[float, ...]]
Bind = Callable[[Settings], Scorer]
"""From the settings of the scoring to a scorer of what was counted."""
EASE_BYTES = 4 << 30
"""Most memory that EASE may take: it holds three dense float32 matrices of items x items at its peak."""
POPULARITY, MARKOV, KNN, EASE = "popularity", "Markov", "item-kNN", "EASE"
TIE = 1e-6
"""Weight of the popularity, scaled to 1, that decides between equal scores."""


@dataclass(frozen=True, eq=False)
class Fitted:
    """A baseline that is ready to score."""

    name: str
    scorer: Scorer
    settings: Settings
    """The chosen ones."""
    validation: float | None
    """NDCG@10 of the chosen settings on the validation slice; None where there was nothing to choose."""
    seconds: float
    """Of counting everything before T."""
    tuning_seconds: float


def history_weights(sequences: Sequences, tasks: Tasks, items: int, decay: float) -> Any:
    """Return float32 CSR (n, items): each task's earlier items, ``decay ** age``, summed over repeats.

    Parameters
    ----------
    decay
        0 to 1; the age of the last group is 0, of the one before 1.
    """
    group = ranges(tasks.groups - tasks.read, tasks.read)
    row = np.repeat(np.arange(len(tasks)), tasks.read)
    age = tasks.groups[row] - 1 - group
    kept = np.power(decay, age) > 1e-6
    group, row, age = group[kept], row[kept], age[kept]
    sizes = sequences.group_offsets[group + 1] - sequences.group_offsets[group]
    columns = sequences.items[ranges(sequences.group_offsets[group], sizes)]
    values = np.repeat(np.power(decay, age), sizes).astype(np.float32)
    rows = np.repeat(row, sizes)
    known = columns >= 0
    return sparse.coo_array((values[known], (rows[known], columns[known])), shape=(len(tasks), items)).tocsr()


def popularity_scorer(counts: npt.NDArray[np.integer]) -> Scorer:
    """Return the same scores for everybody: events of each item."""
    scores = counts.astype(np.float32)
    return lambda tasks: np.broadcast_to(scores, (len(tasks), len(scores)))


def fit_popularity(world: World) -> Fitted:
    """Count the events before T."""
    return Fitted(POPULARITY, popularity_scorer(world.counts), {}, None, 0.0, 0.0)


def fit_markov(world: World, share: float, largest: int) -> Fitted:
    """Count which items followed an item's group in the user's next group: a first-order Markov chain of groups.

    The score of an item is its mean transition share from the items of the last groups; with ``decay`` 0 of the last
    group alone.
    """

    def count(outer: Settings, train: Sequences) -> Bind:
        model = _cooccurrence(train, len(world.item_ids), 0.0)
        return _product(world, train, _in_catalogue(model.successors, model, len(world.item_ids)))

    return _tuned(MARKOV, world, share, largest, ({}, {"decay": (0.0, 0.3, 0.6, 0.8)}), count)


def fit_knn(world: World, share: float, largest: int) -> Fitted:
    """Fit item-kNN of the user's recent items (Sarwar et al. 2001; decay over groups, shrunk cosine).

    ``own`` is the weight of an item's similarity to itself: above 0, and where repeats are common, a user is offered
    again what they had.
    """

    def count(outer: Settings, train: Sequences) -> Bind:
        model = _cooccurrence(train, len(world.item_ids), outer["shrinkage"])
        return _product(world, train, _in_catalogue(model.neighbours, model, len(world.item_ids)))

    own = (0.0,) if world.filter_seen else (0.0, 0.2, 0.5, 1.0, 2.0)
    inner: Grid = {"decay": (0.5, 0.7, 0.85, 0.95, 0.99, 1.0), "own": own}
    return _tuned(KNN, world, share, largest, ({"shrinkage": (5.0, 30.0, 100.0)}, inner), count)


def fit_ease(world: World, share: float, largest: int) -> Fitted:
    """Fit EASE (Steck 2019, "Embarrassingly Shallow Autoencoders for Sparse Data", equations 6 to 8), dense.

    Raises
    ------
    DataError
        The matrices would take more than :data:`EASE_BYTES`.
    """
    known = int((world.counts > 0).sum())
    if 12 * known * known > EASE_BYTES:
        raise DataError(
            f"EASE: expected items whose three dense {known:,} x {known:,} matrices fit in {EASE_BYTES >> 20:,} MiB, "
            f"found {12 * known * known >> 20:,} MiB; leave EASE out with --skip EASE"
        )

    def count(outer: Settings, train: Sequences) -> Bind:
        return _ease_scorer(world, train, ease_weights(_matrix(train, len(world.item_ids)), outer["ridge"]))

    inner: Grid = {"decay": (0.5, 0.7, 0.85, 0.95, 1.0), "own": (0.0,) if world.filter_seen else (0.0, 0.1, 0.2, 0.4)}
    return _tuned(EASE, world, share, largest, ({"ridge": (100.0, 400.0, 1600.0)}, inner), count)


def ease_weights(matrix: Any, ridge: float) -> npt.NDArray[np.float32]:
    """Return EASE's item-to-item weights, float32 (items, items), 0 on the diagonal.

    Parameters
    ----------
    matrix : CSR (users, items)
        1 where a user had an item.
    ridge
        Lambda of the paper's equation 2, above 0.
    """
    gram = (matrix.T @ matrix).toarray().astype(np.float32, order="F")
    gram[np.diag_indices_from(gram)] += ridge
    factor = linalg.cholesky(gram, lower=True, overwrite_a=True, check_finite=False)
    lower, failed = linalg.lapack.spotri(factor, lower=1, overwrite_c=1)
    if failed:
        raise DataError(f"EASE: the item matrix can't be inverted at ridge {ridge}; use a larger one")
    inverse = np.tril(lower) + np.tril(lower, -1).T
    weights = -inverse / np.diag(inverse)
    weights[np.diag_indices_from(weights)] = 0.0
    return np.asarray(weights, np.float32)


def _tuned(
    name: str, world: World, share: float, largest: int, grids: tuple[Grid, Grid], count: Callable[..., Bind]
) -> Fitted:
    """Choose among all combinations on the validation slice; the first of equal ones wins.

    Parameters
    ----------
    grids
        What the counting depends on, and what only the scoring does.
    """
    started = perf_counter()
    train, tasks = world.validation(share, largest)
    best: tuple[Settings, Settings] = ({}, {})
    score = -1.0
    for outer in _combinations(grids[0]):
        bind = count(outer, train)
        for inner in _combinations(grids[1]):
            found = validation_ndcg(bind(inner), world, tasks)
            if found > score:
                best, score = (outer, inner), found
    tuned = perf_counter()
    scorer = count(best[0], world.before())(best[1])
    return Fitted(name, scorer, best[0] | best[1], score, perf_counter() - tuned, tuned - started)


def _combinations(grid: Grid) -> list[Settings]:
    return [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]


def _cooccurrence(train: Sequences, items: int, shrinkage: float) -> CooccurrenceModel:
    """Count groups; an item's id is its place in the catalogue, zero-padded: the model sorts ids as strings."""
    users = np.repeat(np.arange(len(train.user_offsets) - 1), np.diff(train.user_offsets))
    sizes = train.group_sizes()
    times = np.repeat(train.timestamps, sizes)
    events = pa.table(
        {
            USER_ID: pa.array(np.repeat(users, sizes).astype(str)),
            ITEM_ID: pa.array(np.char.zfill(train.items.astype(str), len(str(items)))),
            EVENT_TIMESTAMP: pa.array(times).cast(TIMESTAMP),
        }
    )
    return CooccurrenceModel.fit(events, from_micros(int(times.max()) + 1), CooccurrenceConfig(shrinkage=shrinkage))


def _in_catalogue(matrix: Any, model: CooccurrenceModel, items: int) -> Any:
    place = np.array([int(item) for item in model.item_ids], np.int64)
    found = matrix.tocoo()
    rows, columns = found.coords
    return sparse.coo_array((found.data, (place[rows], place[columns])), shape=(items, items)).tocsr()


def _product(world: World, train: Sequences, matrix: Any) -> Bind:
    """Score by the decayed history times an item-to-item matrix, and by popularity where that is equal."""
    items = matrix.shape[0]
    tie = _tie(train, items)

    def bind(inner: Settings) -> Scorer:
        own = inner.get("own", 0.0)
        full = (matrix + own * sparse.eye_array(items, dtype=np.float32)).tocsr() if own else matrix

        def scores(tasks: Tasks) -> npt.NDArray[np.float32]:
            history = history_weights(world.sequences, tasks, items, inner["decay"])
            return np.asarray((history @ full).toarray() + tie, np.float32)

        return scores

    return bind


def _ease_scorer(world: World, train: Sequences, weights: npt.NDArray[np.float32]) -> Bind:
    items = len(world.item_ids)
    known, tie = _known(train, items), _tie(train, items)

    def bind(inner: Settings) -> Scorer:
        def scores(tasks: Tasks) -> npt.NDArray[np.float32]:
            history = history_weights(world.sequences, tasks, items, inner["decay"])[:, known]
            history.data = np.minimum(history.data, 1.0)  # the training matrix is binary
            out = np.tile(tie, (len(tasks), 1))
            out[:, known] += history @ weights + inner["own"] * history.toarray()
            return out

        return scores

    return bind


def _matrix(train: Sequences, items: int) -> Any:
    """Return float32 CSR (users, known items): 1 where a user had an item."""
    known = _known(train, items)
    column = np.zeros(items, np.int64)
    column[known] = np.arange(len(known))
    users = np.repeat(np.arange(len(train.user_offsets) - 1), np.diff(train.user_offsets))
    pairs = np.unique(np.repeat(users, train.group_sizes()) * len(known) + column[train.items])
    rows, columns = np.divmod(pairs, len(known))
    ones = np.ones(len(pairs), np.float32)
    return sparse.coo_array((ones, (rows, columns)), shape=(len(train.user_offsets) - 1, len(known))).tocsr()


def _known(train: Sequences, items: int) -> Ints:
    return np.flatnonzero(np.bincount(train.items, minlength=items))


def _tie(train: Sequences, items: int) -> npt.NDArray[np.float32]:
    counts = np.bincount(train.items, minlength=items)
    return np.asarray(TIE * counts / max(1, int(counts.max())), np.float32)
