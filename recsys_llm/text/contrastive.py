"""The contrastive loss of item texts: a query's vector shall be nearest to that of the item that came next.

InfoNCE with the batch's own targets as negatives (van den Oord et al. 2018, equation 4; Henderson et al. 2017, section
4.4), corrected for that popular items are drawn as negatives more often (Yi et al. 2019, "Sampling-Bias-Corrected
Neural Modeling for Large Corpus Item Recommendations", section 3; Bengio and Senecal 2008).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from recsys_llm.text.events import Ints


def contrastive_loss(
    query: Tensor,
    target: Tensor,
    *,
    temperature: float,
    log_q: Tensor | None = None,
    masked: Tensor | None = None,
    query_log_q: Tensor | None = None,
    both_directions: bool = False,
) -> Tensor:
    """Return the mean cross-entropy of finding each query's own target among the targets of the batch.

    The logit of query i and target j is ``query_i . target_j / temperature - log_q_j``, for the true target, too.

    Parameters
    ----------
    query, target : float (B, dim)
        Row i of both is a pair. Of length 1 for cosine similarity.
    log_q : float (B,)
        Log of the probability with which each target is drawn into a batch; None: no correction.
    masked : bool (B, B)
        Targets (columns) that are no negatives of a query (row): :func:`false_negatives`. The diagonal is not read.
    query_log_q : float (B,)
        The same as ``log_q`` of the queries; read with ``both_directions``.
    both_directions
        Also find each target's query among the queries, and return the mean of both.

    Examples
    --------
    >>> query, target = torch.eye(2), torch.eye(2)
    >>> round(float(contrastive_loss(query, target, temperature=1.0)), 4)  # log(1 + exp(-1))
    0.3133
    """
    logits = query @ target.T / temperature  # (B, B)
    own = torch.eye(len(query), dtype=torch.bool, device=query.device)
    hidden = own & ~own if masked is None else masked & ~own
    forth = _own_entropy(logits, log_q, hidden)
    if not both_directions:
        return forth
    return (forth + _own_entropy(logits.T, query_log_q, hidden.T)) / 2


def _own_entropy(logits: Tensor, log_q: Tensor | None, hidden: Tensor) -> Tensor:
    corrected = logits if log_q is None else logits - log_q
    corrected = corrected.masked_fill(hidden, -torch.inf)
    return functional.cross_entropy(corrected, torch.arange(len(logits), device=logits.device))


def log_frequencies(drawn: Ints) -> npt.NDArray[np.float32]:
    """Return the log of the share that each value has in ``drawn``, float32 (n,).

    Examples
    --------
    >>> np.exp(log_frequencies(np.array([7, 7, 7, 2]))).round(2).tolist()
    [0.75, 0.75, 0.75, 0.25]
    """
    _, place, counts = np.unique(drawn, return_inverse=True, return_counts=True)
    return np.log(counts / max(len(drawn), 1)).astype(np.float32)[place]


def pair_keys(first: Ints, second: Ints, count: int) -> Ints:
    """Return one sorted number for each distinct pair, ``first * count + second``; for :func:`false_negatives`."""
    return np.unique(first * count + second)


def false_negatives(
    *, user: Ints, query_item: Ints, target: Ints, target_text: Ints, items: int, seen: Ints, positives: Ints
) -> npt.NDArray[np.bool_]:
    """Return which targets of a batch (columns) may not be used as negatives of a query (row), bool (B, B).

    Those are: items with the text of the true target; items that the query's user had an event with; items that
    followed the query's item at any time.

    Parameters
    ----------
    user, target, target_text : int64 (B,)
        Of each pair: the user, the target's place in the catalogue, and its text.
    query_item : int64 (B,)
        Place of the query's item in the catalogue; -1 where the query is no item.
    items
        Length of the catalogue.
    seen
        Sorted :func:`pair_keys` of (user, item).
    positives
        Sorted :func:`pair_keys` of (query's item, target).
    """
    same = target_text[:, None] == target_text[None, :]
    of_user = _contains(seen, user[:, None] * items + target[None, :])
    of_query = _contains(positives, query_item[:, None] * items + target[None, :]) & (query_item >= 0)[:, None]
    found: npt.NDArray[np.bool_] = same | of_user | of_query
    return found


def _contains(keys: Ints, asked: Ints) -> npt.NDArray[np.bool_]:
    """Return where ``asked`` is one of the sorted ``keys``; faster than ``numpy.isin``, which would sort them again."""
    if not len(keys):
        return np.zeros(asked.shape, np.bool_)
    found: npt.NDArray[np.bool_] = keys[np.searchsorted(keys, asked).clip(max=len(keys) - 1)] == asked
    return found
