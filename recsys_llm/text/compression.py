"""Smaller versions of an encoder's vectors: fewer dimensions, fewer bits.

Dimensions are left out (as Matryoshka encoders allow, Kusupati et al. 2022) or rotated away by PCA; what is left is
stored as float32, int8 or bits (:class:`~recsys_llm.storage.VectorStorage`). Which of it is good enough, only a metric
can say: :func:`measure` ranks the next item by the decoded vectors.

sentence-transformers' ``quantize_embeddings`` has the same bits (``ubinary``), and a test compares. Its int8 is another
one: a range for each dimension, which every reader of the view would need (two floats a dimension, against one scale in
the view's tag), and codes rounded down, which shortens vectors. So none of it is used here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from recsys_llm.bootstrap import Interval
from recsys_llm.errors import TrainingError
from recsys_llm.storage import STORAGES, VectorStorage
from recsys_llm.text.evaluation import NextItemPairs, RetrievalScores, evaluate_vectors, paired_interval
from recsys_llm.text.transform import VectorTransform, unit_rows

FULL = "full_float32"
"""Name of the candidate that changes nothing."""
DIMENSIONS = (256, 128, 64)
"""Lengths that are tried, where an encoder's vectors are longer."""
QUANTILES = (0.99, 0.999, 0.9999, 1.0)
"""Of absolute values: the scales of int8 that are tried."""
FITTING_ITEMS = 100_000
"""Items that PCA is fitted to, at most."""
CALIBRATION_ITEMS = 10_000
"""Items that the scale of int8 is chosen by, at most."""

Floats = npt.NDArray[np.float32]


def fit_candidates(
    vectors: Floats, input_fingerprint: str, *, normalize: bool = True, until: datetime, seed: int = 0
) -> dict[str, VectorTransform]:
    """Fit every combination of dimensions, way and storage that applies.

    Parameters
    ----------
    vectors : float32 (n, dim)
        The encoder's, of the items known strictly before ``until``.
    input_fingerprint
        Of the encoder.
    normalize
        Scale what is left to length 1, as the encoder does.
    until
        Noted as the training cut-off of what learns from the vectors: PCA, and the scale of int8.
    seed
        Of the items drawn, where there are more than are used.

    Returns
    -------
    dict
        By name, such as ``full_float32``, ``truncate128_int8``, ``pca64_binary``.

    Raises
    ------
    TrainingError
        There are no vectors, or one is not finite.

    Examples
    --------
    >>> from datetime import UTC
    >>> vectors = np.random.default_rng(0).normal(size=(100, 70)).astype(np.float32)
    >>> list(fit_candidates(vectors, "", until=datetime(2024, 1, 1, tzinfo=UTC)))[3:7]
    ['pca70_float32', 'pca70_int8', 'pca70_binary', 'truncate64_float32']
    """
    if not len(vectors) or not np.isfinite(vectors).all():
        raise TrainingError(f"compression: expected finite vectors of items, found {len(vectors)} items")
    fitting = _some(vectors, FITTING_ITEMS, seed)
    calibrating = _some(vectors, CALIBRATION_ITEMS, seed)
    found: dict[str, VectorTransform] = {}
    for label, kind, mean, matrix in _maps(fitting):
        plain = VectorTransform(kind, input_fingerprint, mean, matrix, normalize)
        mapped = plain.apply(calibrating)
        for storage in STORAGES:
            notes: dict[str, Any] = {"items": len(vectors)}
            if kind == "pca" or storage == "int8":
                notes["trained_until"] = until.isoformat()
            scale = None
            if storage == "int8":
                scale, notes["calibration"] = calibrate(mapped)
            found[f"{label}_{storage}"] = replace(plain, storage=storage, scale=scale, notes=notes)
    return found


def _maps(vectors: Floats) -> Iterator[tuple[str, str, Floats, Floats]]:
    """Yield the label, kind, mean and matrix of each map."""
    dim = vectors.shape[1]
    zero, identity = np.zeros(dim, np.float32), np.eye(dim, dtype=np.float32)
    yield "full", "none", zero, identity
    mean, components = principal_components(vectors)
    for new_dim in (dim, *(length for length in DIMENSIONS if length < dim)):
        if new_dim < dim:
            yield f"truncate{new_dim}", "truncate", zero, np.ascontiguousarray(identity[:, :new_dim])
        if new_dim < len(vectors):  # fewer items span fewer directions; the rest would be arbitrary
            yield f"pca{new_dim}", "pca", mean, np.ascontiguousarray(components[:, :new_dim])


def principal_components(vectors: Floats) -> tuple[Floats, Floats]:
    """Return the mean and the directions of largest variance, largest first.

    Computed in float64. The entry of each direction with the largest magnitude is positive, so that the result doesn't
    hang on the solver's choice of a sign.

    Parameters
    ----------
    vectors : float32 (n, dim)

    Returns
    -------
    float32 (dim,), float32 (dim, dim)
        A direction is a column.
    """
    exact = vectors.astype(np.float64)
    mean = exact.mean(axis=0)
    exact -= mean
    _, directions = np.linalg.eigh(exact.T @ exact)
    directions = directions[:, ::-1]
    largest = directions[np.abs(directions).argmax(axis=0), np.arange(directions.shape[1])]
    return mean.astype(np.float32), (directions * np.where(largest < 0, -1.0, 1.0)).astype(np.float32)


def calibrate(vectors: Floats) -> tuple[float, dict[str, Any]]:
    """Return the scale of int8 that loses least, and what is known of it.

    A small scale has fine steps and cuts what lies beyond; of the :data:`QUANTILES` of absolute values, the one with
    the smallest mean squared error is taken. Four digits are enough, and fit into a tag.

    Parameters
    ----------
    vectors : float32 (n, dim)
    """
    sizes = np.abs(vectors)
    best: tuple[float, dict[str, Any]] | None = None
    for quantile, value in zip(QUANTILES, np.quantile(sizes, QUANTILES).tolist(), strict=True):
        scale = float(f"{value:.4g}") or 1.0
        decoded = there_and_back(vectors, VectorStorage("int8", vectors.shape[1], scale))
        error = float(np.square(decoded - vectors, dtype=np.float64).mean())
        if best is None or error < best[1]["mean_squared_error"]:
            cut = float((sizes > scale).mean())
            best = scale, {"quantile": quantile, "mean_squared_error": error, "share_cut": cut}
    assert best is not None  # there are quantiles
    return best


def there_and_back(vectors: Floats, stored: VectorStorage) -> Floats:
    """Return vectors as a reader gets them, (n, dim)."""
    codes = stored.encode(vectors)
    return stored.decode(codes.view(np.uint8).reshape(len(vectors), stored.width))


@dataclass(frozen=True, eq=False)
class Quality:
    """How well one candidate's vectors find the next item, and what of the full vectors' quality is kept."""

    scores: RetrievalScores
    recall_kept: float | None
    """As a share of the full vectors' recall; None where theirs is 0."""
    ndcg_kept: float | None
    recall_difference: Interval | None
    """To the full vectors, with its 95% interval over users."""
    ndcg_difference: Interval | None

    @property
    def recall(self) -> float:
        """Mean over users."""
        return self.scores.mean("recall") or 0.0

    @property
    def ndcg(self) -> float:
        """Mean over users."""
        return self.scores.mean("ndcg") or 0.0


def measure(
    candidates: Mapping[str, VectorTransform], vectors: Floats, pairs: NextItemPairs, *, k: int = 20, seed: int = 0
) -> Iterator[tuple[str, Quality]]:
    """Yield each candidate's quality, that of :data:`FULL` first.

    Items are ranked by the cosine of decoded vectors.

    Parameters
    ----------
    candidates
        From :func:`fit_candidates`.
    vectors : float32 (items, dim)
        The encoder's, of the catalogue that ``pairs`` were made with.
    seed
        Of the bootstrap.
    """
    full = _scores(candidates[FULL], vectors, pairs, k)
    yield FULL, _quality(full, full, seed)
    for name, transform in candidates.items():
        if name != FULL:
            yield name, _quality(full, _scores(transform, vectors, pairs, k), seed)


def _scores(transform: VectorTransform, vectors: Floats, pairs: NextItemPairs, k: int) -> RetrievalScores:
    decoded = there_and_back(transform.apply(vectors), transform.stored)
    return evaluate_vectors(unit_rows(decoded), pairs, k=k)


def _quality(full: RetrievalScores, scores: RetrievalScores, seed: int) -> Quality:
    return Quality(
        scores,
        recall_kept=_share(scores.mean("recall"), full.mean("recall")),
        ndcg_kept=_share(scores.mean("ndcg"), full.mean("ndcg")),
        recall_difference=paired_interval(full, scores, "recall", seed=seed),
        ndcg_difference=paired_interval(full, scores, "ndcg", seed=seed),
    )


def _share(part: float | None, whole: float | None) -> float | None:
    return None if part is None or not whole else part / whole


def pareto_front(quality: Sequence[float], size: Sequence[float]) -> list[bool]:
    """Return which candidates no other beats: none is at least as good and as small, and better or smaller.

    Parameters
    ----------
    quality, size
        Of each candidate; more quality is better, less size is better.

    Examples
    --------
    >>> pareto_front([0.9, 0.8, 0.7, 0.9], [4.0, 1.0, 2.0, 8.0])
    [True, True, False, False]
    """
    order = sorted(range(len(size)), key=lambda place: (size[place], -quality[place]))
    front = [False] * len(order)
    best, best_size = -np.inf, -np.inf
    for place in order:
        if quality[place] > best or (quality[place] == best and size[place] == best_size):
            front[place] = True
            best, best_size = quality[place], size[place]
    return front


def smallest_that_keeps(qualities: Mapping[str, Quality], sizes: Mapping[str, float], *, keep: float) -> str:
    """Return the smallest candidate that keeps a share of recall and of NDCG; of equally small ones, the better.

    Where none does, :data:`FULL`.
    """

    def keeps(quality: Quality) -> bool:
        return min(quality.recall_kept or 0.0, quality.ndcg_kept or 0.0) >= keep

    able = [name for name, quality in qualities.items() if keeps(quality)]
    return min(able, key=lambda name: (sizes[name], -qualities[name].recall, name), default=FULL)


def _some(vectors: Floats, most: int, seed: int) -> Floats:
    if len(vectors) <= most:
        return vectors
    return vectors[np.sort(np.random.default_rng(seed).choice(len(vectors), most, replace=False))]
