"""Ranking metrics of one wanted item among candidates. Ties are broken at random under a seed, never by row order."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from recsys_llm.errors import ModelError


def rank_of(scores: npt.NDArray[np.floating], wanted: int, *, luck: float) -> int:
    """Return the 1-based rank of one candidate, best first.

    Parameters
    ----------
    scores : (n,)
        Higher is better.
    wanted
        Position of the candidate.
    luck
        Uniform in [0, 1): where in its tie the candidate lands. With a fresh draw for each event this is the same
        as shuffling before a stable sort. Rankers compared on one event should share the draw.

    Raises
    ------
    ModelError
        A score is NaN: it has no rank.

    Examples
    --------
    >>> rank_of(np.array([0.1, 0.9, 0.5]), 2, luck=0.0)
    2
    >>> [rank_of(np.zeros(4), 0, luck=luck) for luck in (0.0, 0.3, 0.5, 0.99)]
    [1, 2, 3, 4]
    """
    if np.isnan(scores).any():
        count = int(np.isnan(scores).sum())
        raise ModelError(f"expected a number as the score of each candidate, found {count} NaN; check the ranker")
    own = scores[wanted]
    ties = int((scores == own).sum())
    return 1 + int((scores > own).sum()) + int(luck * ties)


def ndcg(ranks: npt.NDArray[np.integer], k: int) -> npt.NDArray[np.float64]:
    """Return NDCG@k of each event, float64 (n,): ``1 / log2(1 + rank)`` up to rank k, as the ideal gain is 1.

    Järvelin and Kekäläinen 2002, with one relevant candidate.

    Examples
    --------
    >>> ndcg(np.array([1, 3, 11]), 10).tolist()
    [1.0, 0.5, 0.0]
    """
    return np.where(ranks <= k, 1 / np.log2(1.0 + ranks), 0.0)


def hit_rate(ranks: npt.NDArray[np.integer], k: int) -> npt.NDArray[np.float64]:
    """Return HR@k of each event, float64 (n,): 1 where the wanted item is among the first k.

    Examples
    --------
    >>> hit_rate(np.array([1, 10, 11]), 10).tolist()
    [1.0, 1.0, 0.0]
    """
    return (ranks <= k).astype(np.float64)


def reciprocal_rank(ranks: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
    """Return the reciprocal rank of each event, float64 (n,); its mean is the MRR.

    Examples
    --------
    >>> reciprocal_rank(np.array([1, 4])).tolist()
    [1.0, 0.25]
    """
    return 1.0 / ranks
