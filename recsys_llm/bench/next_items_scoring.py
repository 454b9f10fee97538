"""From a contestant's scores to its lists, and from lists to metrics of every predicted group."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from recsys_llm.bench.next_items_world import Tasks, World
from recsys_llm.seqgan.evaluation import hits_and_relevant
from recsys_llm.seqgan.losses import block_rows
from recsys_llm.seqgan.metrics import ndcg_and_hit_rate, reciprocal_rank
from recsys_llm.seqgan.ranking import best_first, hide_seen
from recsys_llm.seqgan.sequences import Sequences

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Lists = npt.NDArray[np.int64]
Scorer = Callable[[Tasks], npt.NDArray[np.float32]]
"""Scores float32 (n, items) of all items for some tasks, higher is better."""
K = 10
DEPTH = 100
"""Length of the lists; a relevant item below counts 0 in the MRR."""


def ranked_lists(
    scorer: Scorer,
    sequences: Sequences,
    tasks: Tasks,
    items: int,
    *,
    filter_seen: bool,
    excluded: Callable[[Tasks], Bools] | None = None,
    depth: int = DEPTH,
) -> Lists:
    """Return the best items of each task, int64 (n, depth), -1 past the last candidate; ties in catalogue order.

    Parameters
    ----------
    filter_seen
        Leave out what the user had in the groups before.
    excluded
        Which items are no candidates, bool (n, items) or (items,).
    """
    depth = min(depth, items)
    out = np.full((len(tasks), depth), -1, np.int64)
    step = block_rows(items)
    for start in range(0, len(tasks), step):
        rows = slice(start, start + step)
        part = tasks.take(np.arange(len(tasks))[rows])
        scores = torch.from_numpy(np.array(scorer(part), np.float32))
        if excluded is not None:
            scores.masked_fill_(torch.from_numpy(excluded(part)), float("-inf"))
        if filter_seen:
            hide_seen(scores, sequences, part.users, part.read)
        values, best = best_first(scores, depth)
        out[rows] = best.masked_fill(values.isinf(), -1).numpy()
    return out


def validation_ndcg(scorer: Scorer, world: World, tasks: Tasks) -> float:
    """Return the mean NDCG@10 on groups of the validation slice, among the vocabulary."""

    def later(part: Tasks) -> Bools:
        return np.arange(len(world.item_ids)) >= len(world.vocabulary)

    lists = ranked_lists(
        scorer, world.sequences, tasks, len(world.item_ids), filter_seen=world.filter_seen, excluded=later, depth=K
    )
    ndcg, _ = ndcg_and_hit_rate(*hits_and_relevant(lists, world.sequences, tasks.groups))
    return float(ndcg.mean())


@dataclass(frozen=True, eq=False)
class Measured:
    """One contestant's run on the world's tasks; arrays are float64 (n,), NaN where a metric doesn't apply."""

    metrics: dict[str, Floats]
    """``ndcg_at_10``, ``hr_at_10``, ``mrr``; ``cold_*``: only the cold items of a group are relevant;
    ``cold_among_cold_*``: they also are the only candidates (not for contestants that give lists, not scores)."""
    coverage: float
    """Share of the catalogue that is in anybody's first ten."""
    popularity: float
    """Mean events before T of the items in the first ten."""
    diversity: float
    """Mean over lists of 1 - the mean cosine of two of the first ten, by text; NaN without text."""


def measure(scorer: Scorer, world: World) -> Measured:
    """Rank the catalogue for every task, and measure the lists."""
    items = len(world.item_ids)

    def rank(tasks: Tasks, excluded: Callable[[Tasks], Bools]) -> Lists:
        return ranked_lists(scorer, world.sequences, tasks, items, filter_seen=world.filter_seen, excluded=excluded)

    lists = rank(world.tasks, world.unavailable)
    found = measure_lists(lists, world)
    rows = np.flatnonzero(np.isfinite(found.metrics["cold_mrr"]))
    if len(rows):
        tasks = world.tasks.take(rows)
        among = rank(tasks, lambda part: world.unavailable(part) | ~world.cold)
        for name, values in _metrics(among, world, tasks, world.cold).items():
            found.metrics[f"cold_among_cold_{name}"] = np.full(len(world.tasks), np.nan)
            found.metrics[f"cold_among_cold_{name}"][rows] = values
    return found


def measure_lists(lists: Lists, world: World) -> Measured:
    """Measure lists of catalogue positions, int64 (n, depth), -1 past their end."""
    metrics = _metrics(lists, world, world.tasks, None)
    metrics |= {f"cold_{name}": values for name, values in _metrics(lists, world, world.tasks, world.cold).items()}
    first = lists[:, :K]
    shown = first[first >= 0]
    return Measured(
        metrics=metrics,
        coverage=len(np.unique(shown)) / len(world.item_ids),
        popularity=float(world.counts[shown].mean()) if len(shown) else 0.0,
        diversity=_diversity(first, world.text),
    )


def _metrics(lists: Lists, world: World, tasks: Tasks, wanted: Bools | None) -> dict[str, Floats]:
    hits, relevant = hits_and_relevant(lists, world.sequences, tasks.groups, wanted)
    ndcg, hit = ndcg_and_hit_rate(hits[:, :K], relevant)
    found = {"ndcg_at_10": ndcg, "hr_at_10": hit, "mrr": reciprocal_rank(hits)}
    return {name: np.where(relevant > 0, values, np.nan) for name, values in found.items()}


def _diversity(lists: Lists, text: npt.NDArray[np.float32]) -> float:
    """Return the mean of 1 - cosine over all pairs of a list, averaged over the lists that have two texts."""
    norm = np.linalg.norm(text, axis=1, keepdims=True)
    unit = np.divide(text, norm, out=np.zeros_like(text), where=norm > 0)
    padded = np.concatenate([unit, np.zeros((1, text.shape[1]), np.float32)])  # index -1 is the zero vector
    total, count = 0.0, 0
    for start in range(0, len(lists), 2048):
        vectors = padded[lists[start : start + 2048]]  # (n, k, dim)
        present = (vectors != 0).any(axis=2).sum(axis=1)
        enough = present > 1
        same = np.square(vectors.sum(axis=1)).sum(axis=1) - present  # sum over ordered pairs of their cosine
        pairs = present * (present - 1)
        total += float((1.0 - same[enough] / pairs[enough]).sum())
        count += int(enough.sum())
    return total / count if count else float("nan")
