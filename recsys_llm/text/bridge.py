"""A linear map from a new encoder's vectors to an older one's, from items that have both.

Two maps are fitted, on 80% of the items: a rotation (orthogonal Procrustes, Schoenemann 1966) where both spaces have
one dimension, and a ridge regression. The next 10% choose the ridge's penalty and the better of the two; both are then
fitted to these 90%, and measured on the last 10%, which neither has seen. What is measured is what is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.linalg import orthogonal_procrustes

from recsys_llm.errors import TrainingError
from recsys_llm.text.transform import VectorTransform, unit_rows

NEIGHBOURS = 20
SMALLEST = 50
"""Items that a bridge needs at least."""
PENALTIES = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Of the ridge, as a multiple of the mean eigenvalue of the new vectors' second moments."""
_QUERIES = 1000
"""Held-out items whose neighbours are looked at, at most."""
_POOL = 20_000
"""Items that neighbours are looked for among, at most."""
_UNIT = 1e-3

Kind = Literal["orthogonal", "ridge"]
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Bridge:
    """A fitted map, ``(x - mean) @ matrix``, and how near it comes."""

    kind: Kind
    mean: Floats
    """(d,)"""
    matrix: Floats
    """(d, old d)"""
    normalize: bool
    """Whether the old vectors have length 1."""
    penalty: float | None = None
    """Of the ridge, from :data:`PENALTIES`."""
    scores: Mapping[Kind, Mapping[str, float]] = field(default_factory=dict)
    """Of each kind that was fitted, on held-out items; see :func:`measure`."""
    items: Mapping[str, int] = field(default_factory=dict)
    """``fitted`` and ``held_out`` items."""

    def transform(self, input_fingerprint: str, notes: Mapping[str, object]) -> VectorTransform:
        """Return the map as what an encoder applies; ``notes`` join what was measured."""
        scores = {kind: dict(scores) for kind, scores in self.scores.items()}
        measured = {"fit": self.kind, "penalty": self.penalty, "items": dict(self.items), "scores": scores}
        return VectorTransform(
            "bridge", input_fingerprint, self.mean, self.matrix, self.normalize, notes={**measured, **notes}
        )


def fit_bridge(new: Floats, old: Floats, *, seed: int = 0) -> Bridge:
    """Fit a map from the vectors of a new encoder to those of an old one.

    Parameters
    ----------
    new : float32 (n, d)
    old : float32 (n, old d)
        Of the same items, row by row.
    seed
        Decides which items are held out.

    Raises
    ------
    TrainingError
        There are fewer than :data:`SMALLEST` items, or a vector is not finite.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> new = rng.normal(size=(100, 4)).astype(np.float32)
    >>> turned, _ = np.linalg.qr(rng.normal(size=(4, 4)))
    >>> bridge = fit_bridge(new, (new @ turned).astype(np.float32))
    >>> bridge.kind, round(bridge.scores["orthogonal"]["cosine"], 4)
    ('orthogonal', 1.0)
    """
    if len(new) != len(old) or len(new) < SMALLEST:
        raise TrainingError(
            f"bridge: expected at least {SMALLEST} items with a vector of both models, found "
            f"{min(len(new), len(old))}; backfill the new view first"
        )
    if not (np.isfinite(new).all() and np.isfinite(old).all()):
        raise TrainingError("bridge: a vector is not finite; check both views")
    order = np.random.default_rng(seed).permutation(len(new))
    fitting, choosing, testing = np.split(order, [len(new) * 8 // 10, len(new) * 9 // 10])
    normalize = bool(np.abs(np.linalg.norm(old, axis=1) - 1).max() < _UNIT)
    penalty = _choose_penalty(new, old, fitting, choosing, normalize)
    kinds: tuple[Kind, ...] = ("orthogonal", "ridge") if new.shape[1] == old.shape[1] else ("ridge",)
    chosen = max(
        kinds, key=lambda kind: _merit(_fit(kind, new[fitting], old[fitting], normalize, penalty), new, old, choosing)
    )
    both = np.concatenate([fitting, choosing])
    fitted = {kind: _fit(kind, new[both], old[both], normalize, penalty) for kind in kinds}
    scores = {kind: measure(bridge, new, old, testing) for kind, bridge in fitted.items()}
    best = fitted[chosen]
    items = {"fitted": len(both), "held_out": len(testing)}
    return Bridge(best.kind, best.mean, best.matrix, normalize, best.penalty, scores, items)


def measure(bridge: Bridge, new: Floats, old: Floats, held_out: Ints) -> dict[str, float]:
    """Compare mapped vectors with those that the old encoder makes.

    Parameters
    ----------
    bridge
        Its map is measured.
    new, old : float32 (n, d), float32 (n, old d)
        Of all items: neighbours are looked for among them.
    held_out : int64 (m,)
        Items that the map was not fitted to; only they are asked about.

    Returns
    -------
    dict
        ``cosine``: mean cosine of the mapped vector and the old one. ``old_neighbours_kept``: share of an item's 20
        nearest old vectors that are nearest to its mapped vector too. ``old_neighbours_kept_mapped``: the same with all
        vectors mapped. ``old_neighbours_kept_unmapped``: the same within the new vectors, for comparison.
        ``new_neighbours_kept``: share of the new encoder's 20 nearest that mapped vectors keep.
    """
    queries = held_out[:_QUERIES]
    others = np.setdiff1d(np.arange(len(new)), queries)
    pool = np.concatenate([queries, others[: max(_POOL - len(queries), 0)]])
    mapped = unit_rows(bridge.transform("", {}).apply(new[pool]))
    fresh, stale = unit_rows(new[pool]), unit_rows(old[pool])
    count = len(queries)
    of_old, of_new, of_mapped = (_nearest(each[:count], each) for each in (stale, fresh, mapped))
    return {
        "cosine": float((mapped[:count] * stale[:count]).sum(axis=1).mean()),
        "old_neighbours_kept": _shared(of_old, _nearest(mapped[:count], stale)),
        "old_neighbours_kept_mapped": _shared(of_old, of_mapped),
        "old_neighbours_kept_unmapped": _shared(of_old, of_new),
        "new_neighbours_kept": _shared(of_new, of_mapped),
    }


def _merit(bridge: Bridge, new: Floats, old: Floats, items: Ints) -> float:
    mapped = bridge.transform("", {}).apply(new[items])
    return float((unit_rows(mapped) * unit_rows(old[items])).sum(axis=1).mean())


def _choose_penalty(new: Floats, old: Floats, fitting: Ints, choosing: Ints, normalize: bool) -> float:
    fits = _ridges(new[fitting], old[fitting], PENALTIES, normalize)
    merits = [_merit(bridge, new, old, choosing) for bridge in fits]
    return PENALTIES[int(np.argmax(merits))]


def _fit(kind: Kind, new: Floats, old: Floats, normalize: bool, penalty: float) -> Bridge:
    return _rotation(new, old, normalize) if kind == "orthogonal" else _ridges(new, old, (penalty,), normalize)[0]


def _rotation(new: Floats, old: Floats, normalize: bool) -> Bridge:
    """Rotate about the means; the shift to the old mean is put into the map's own mean, as a rotation can be undone."""
    x, y = new.astype(np.float64), old.astype(np.float64)
    from_, to = x.mean(axis=0), y.mean(axis=0)
    x -= from_
    y -= to
    rotation, singular_sum = orthogonal_procrustes(x, y)
    scale = 1.0 if normalize else float(singular_sum) / float((x * x).sum() or 1.0) or 1.0
    mean = from_ - to @ rotation.T / scale
    return Bridge("orthogonal", mean.astype(np.float32), (rotation * scale).astype(np.float32), normalize)


def _ridges(new: Floats, old: Floats, penalties: tuple[float, ...], normalize: bool) -> list[Bridge]:
    """Fit one ridge for each penalty from one decomposition. Without a mean: text vectors have a common direction."""
    x, y = new.astype(np.float64), old.astype(np.float64)
    values, vectors = np.linalg.eigh(x.T @ x)
    projected = vectors.T @ (x.T @ y)
    scale = float(np.trace(x.T @ x))
    mean = np.zeros(new.shape[1], np.float32)
    found = []
    for penalty in penalties:
        matrix = vectors @ (projected / (np.maximum(values, 0) + penalty * scale / new.shape[1])[:, None])
        found.append(Bridge("ridge", mean, matrix.astype(np.float32), normalize, penalty))
    return found


def _nearest(queries: Floats, pool: Floats) -> Ints:
    """Return the nearest rows of ``pool``, (m, k); query i is row i of the pool's items, and not its own neighbour."""
    count = min(NEIGHBOURS, len(pool) - 1)
    found = np.empty((len(queries), count), np.int64)
    for first in range(0, len(queries), 256):
        scores = queries[first : first + 256] @ pool.T
        rows = np.arange(len(scores))
        scores[rows, first + rows] = -np.inf
        found[first : first + len(scores)] = np.argpartition(-scores, count - 1, axis=1)[:, :count]
    return found


def _shared(one: Ints, other: Ints) -> float:
    both = sum(len(np.intersect1d(a, b)) for a, b in zip(one, other, strict=True))
    return both / one.size
