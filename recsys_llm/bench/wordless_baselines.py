"""What next items are found without reading a word: by popularity, and by who else had both."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import sparse

from recsys_llm.text.evaluation import NextItemPairs, RetrievalScores, Scorer, evaluate_scores
from recsys_llm.text.events import Events

_TIE = 1e-6


def popularity_scorer(events: Events, items: int) -> Scorer:
    """Return the same scores for every query: how often each item was liked.

    Parameters
    ----------
    events
        Those before the cut-off.
    """
    counts = _counts(events, items).astype(np.float32)

    def scores(query: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        return np.broadcast_to(counts, (len(query), items)).copy()

    return scores


def cooccurrence_scorer(events: Events, items: int) -> Scorer:
    """Return the cosine of two items' users: item-based kNN, Sarwar et al. 2001, section 3.1.1.

    Popularity breaks ties.

    Parameters
    ----------
    events
        Those before the cut-off; each user counts once per liked item.
    """
    user, _, item, _ = events.where(events.liked)
    users = int(user.max(initial=-1)) + 1
    had = sparse.csr_matrix((np.ones(len(user), np.float32), (user, item)), shape=(users, items))
    had.data[:] = 1.0
    norms = np.sqrt(np.maximum(np.asarray(had.sum(axis=0)).ravel(), 1.0)).astype(np.float32)
    unit = (had @ sparse.diags(1.0 / norms)).astype(np.float32).tocsc()
    counts = _counts(events, items)
    tie = (_TIE * counts / max(counts.max(initial=0), 1)).astype(np.float32)

    def scores(query: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        found = (unit[:, query].T @ unit).toarray()
        return np.asarray(found + tie, np.float32)

    return scores


def baseline_scores(events: Events, pairs: NextItemPairs) -> dict[str, RetrievalScores]:
    """Return the scores of both on some pairs.

    Parameters
    ----------
    events
        Those before the cut-off, of the catalogue that ``pairs`` were made with.
    """
    items = len(pairs.cold_items)
    return {
        "popularity": evaluate_scores(popularity_scorer(events, items), pairs),
        "co-occurrence": evaluate_scores(cooccurrence_scorer(events, items), pairs),
    }


def _counts(events: Events, items: int) -> npt.NDArray[np.int64]:
    return np.bincount(events.item[events.liked], minlength=items)
