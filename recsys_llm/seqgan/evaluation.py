"""How well next items are predicted: NDCG@10 and HR@10 of the next group, over the whole catalogue."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from recsys_llm.errors import DataError, LeakageError
from recsys_llm.seqgan.checkpoint import Checkpoint
from recsys_llm.seqgan.devices import resolve_device
from recsys_llm.seqgan.generator import Generator, ItemTable
from recsys_llm.seqgan.histories import Histories, Ints, sorted_interactions
from recsys_llm.seqgan.losses import block_rows
from recsys_llm.seqgan.metrics import ndcg_and_hit_rate
from recsys_llm.seqgan.prediction import reading_side
from recsys_llm.seqgan.ranking import best_first, hide_seen, rank
from recsys_llm.seqgan.reading import queries_after
from recsys_llm.seqgan.sequences import Sequences, ranges
from recsys_llm.seqgan.vocabulary import ItemVectors
from recsys_llm.timestamps import as_utc, to_micros

K = 10
"""Length of the evaluated lists."""
Scores = dict[str, float]
"""``ndcg_at_10`` and ``hr_at_10``."""


@torch.no_grad()
def evaluate_next_items(
    checkpoint: Checkpoint,
    interactions: pa.Table | Iterable[pa.RecordBatch],
    *,
    start: datetime,
    end: datetime,
    largest: int = 5000,
    seed: int = 0,
    filter_seen: bool | None = None,
    item_vectors: ItemVectors | None = None,
    device: str = "auto",
) -> dict[str, Scores]:
    """Predict each group after ``start`` from its user's events strictly before it, and score the ten best items.

    Every contestant ranks the whole vocabulary, under the same seen filter, for the same groups; a user's first group
    is predicted from nothing. The relevant items are all of the group; those outside the vocabulary are misses.

    Parameters
    ----------
    interactions
        Canonical, with the history: nothing is cut off before ``start``.
    start, end
        Groups with ``start < time <= end`` are predicted.
    largest
        More groups than this are sampled, uniformly under ``seed``.
    filter_seen, item_vectors, device
        As in :func:`recsys_llm.seqgan.next_items`.

    Returns
    -------
    dict
        "popularity" (events before the model's training cut-off), "mle", "adversarial" if it was trained, "chosen":
        each ``{"ndcg_at_10": ..., "hr_at_10": ...}``, means over groups.

    Raises
    ------
    LeakageError
        The model was trained on events later than ``start``.
    DataError
        No group lies between ``start`` and ``end``.
    """
    start, end = as_utc(start, name="start"), as_utc(end, name="end")
    if checkpoint.trained_until > start:
        raise LeakageError(
            f"evaluation from {start} on: the model was trained on events before {checkpoint.trained_until}; "
            "evaluate on later events, or train until an earlier time"
        )
    histories = Histories.from_interactions(sorted_interactions(interactions))
    sequences = Sequences.encode(histories, checkpoint.vocabulary)
    groups = sample_groups(sequences, to_micros(start) + 1, to_micros(end) + 1, largest, seed)
    if not len(groups):
        raise DataError(f"evaluation: expected events after {start} and up to {end}, found none; check the period")
    hide = checkpoint.filter_seen if filter_seen is None else filter_seen
    scores = {"popularity": score_popularity(checkpoint.counts, sequences, groups, filter_seen=hide)}
    for name in checkpoint.generators:
        model = checkpoint.generator(name).to(resolve_device(device)).eval()
        table = model.item_table()
        read, vectors = reading_side(checkpoint, model, table, histories, item_vectors)
        scores[name] = score_generator(model, table, vectors, read, groups, filter_seen=hide)
    scores["chosen"] = scores[checkpoint.manifest["chosen"]]
    return scores


def sample_groups(sequences: Sequences, start: int, end: int, largest: int, seed: int) -> Ints:
    """Return flat indexes of at most ``largest`` groups with ``start <= time < end`` (microseconds), in user order."""
    groups = np.flatnonzero((sequences.timestamps >= start) & (sequences.timestamps < end))
    if len(groups) > largest:
        groups = np.sort(np.random.default_rng(seed).choice(groups, largest, replace=False))
    return groups


def split_time(sequences: Sequences, share: float) -> int:
    """Return the time (microseconds) from which on about the last ``share`` of the events lie."""
    times = np.sort(np.repeat(sequences.timestamps, sequences.group_sizes()))
    return int(times[int(len(times) * (1.0 - share))])


@torch.no_grad()
def score_generator(
    model: Generator, table: ItemTable, vectors: Tensor, sequences: Sequences, groups: Ints, *, filter_seen: bool
) -> Scores:
    """Return the scores of a generator on groups that it predicts from all before them."""
    users, read = sequences.read_before(groups)
    queries = queries_after(model, vectors, sequences, users, read)
    ranked = rank(queries, table, sequences, users, read, k=K, filter_seen=filter_seen, rebuy=model.rebuy)
    return score(ranked.items.cpu().numpy(), sequences, groups)


def score_popularity(counts: Ints, sequences: Sequences, groups: Ints, *, filter_seen: bool) -> Scores:
    """Return the scores of the same list for all: items by ``counts``, ties in order of index."""
    users, read = sequences.read_before(groups)
    lists = []
    place = np.empty(len(counts), np.float32)
    place[np.argsort(-counts, kind="stable")] = np.arange(len(counts))
    step = block_rows(len(counts))
    for start in range(0, len(groups), step):
        block = slice(start, start + step)
        scores = torch.from_numpy(-place).repeat(len(users[block]), 1)
        if filter_seen:
            hide_seen(scores, sequences, users[block], read[block])
        values, items = best_first(scores, min(K, len(counts)))
        lists.append(items.masked_fill(values.isinf(), -1).numpy())
    return score(np.concatenate(lists), sequences, groups)


def score(items: npt.NDArray[np.int64], sequences: Sequences, groups: Ints) -> Scores:
    """Return the mean NDCG and hit rate of lists (n, k), -1 where they are shorter, for the next groups (n,)."""
    ndcg, hit = ndcg_and_hit_rate(*hits_and_relevant(items, sequences, groups))
    return {"ndcg_at_10": float(ndcg.mean()), "hr_at_10": float(hit.mean())}


def hits_and_relevant(
    items: npt.NDArray[np.int64], sequences: Sequences, groups: Ints, wanted: npt.NDArray[np.bool_] | None = None
) -> tuple[npt.NDArray[np.bool_], Ints]:
    """Return which listed items are in the group that they predict, and how many relevant items each group has.

    Parameters
    ----------
    items : int64 (n, k)
        Lists, best first; -1 where they are shorter.
    groups : int64 (n,)
        Flat indexes of the groups that are predicted.
    wanted : bool (items,), optional
        Which items count as relevant; an unknown one then doesn't. None: all, the unknown ones too.

    Returns
    -------
    hits : bool (n, k)
    relevant : int64 (n,)
    """
    sizes = sequences.group_offsets[groups + 1] - sequences.group_offsets[groups]
    targets = sequences.items[ranges(sequences.group_offsets[groups], sizes)]
    row = np.repeat(np.arange(len(groups)), sizes)
    if wanted is not None:
        kept = (targets >= 0) & wanted[targets]
        targets, row = targets[kept], row[kept]
        sizes = np.bincount(row, minlength=len(groups))
    highest = int(max(items.max(initial=0), targets.max(initial=0))) + 1
    relevant = np.unique((row * highest + targets)[targets >= 0])
    return np.isin(np.arange(len(groups))[:, None] * highest + items, relevant) & (items >= 0), sizes
