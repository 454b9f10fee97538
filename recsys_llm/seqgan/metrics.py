"""Ranking metrics with binary gain, for several relevant items per list."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from recsys_llm.seqgan.histories import Ints

Floats = npt.NDArray[np.float64]


def ndcg_and_hit_rate(hits: npt.NDArray[np.bool_], relevant: Ints) -> tuple[Floats, Floats]:
    """Return NDCG@k and HR@k of each list.

    Parameters
    ----------
    hits : bool (n, k)
        Whether the item at each rank is relevant.
    relevant : int64 (n,)
        Relevant items of each list, those that the model can't predict included.

    Returns
    -------
    ndcg, hit : float64 (n,)
        DCG over that of the best possible list; 1.0 where any of the k is relevant.

    Examples
    --------
    >>> ndcg, hit = ndcg_and_hit_rate(np.array([[False, True]]), np.array([1]))
    >>> round(float(ndcg[0]), 4), float(hit[0])
    (0.6309, 1.0)
    """
    gain = 1.0 / np.log2(np.arange(hits.shape[1]) + 2.0)
    ideal = np.concatenate([[0.0], np.cumsum(gain)])[np.minimum(relevant, hits.shape[1])]
    dcg = np.asarray((hits * gain).sum(axis=1), np.float64)
    ndcg: Floats = np.divide(dcg, ideal, out=np.zeros_like(dcg), where=ideal > 0)
    return ndcg, np.asarray(hits.any(axis=1), np.float64)


def reciprocal_rank(hits: npt.NDArray[np.bool_]) -> Floats:
    """Return the reciprocal rank of the first relevant item of each list (n, k), float64 (n,); 0 where there is none.

    Examples
    --------
    >>> reciprocal_rank(np.array([[False, True, True], [False, False, False]])).tolist()
    [0.5, 0.0]
    """
    return np.where(hits.any(axis=1), 1.0 / (hits.argmax(axis=1) + 1.0), 0.0)
