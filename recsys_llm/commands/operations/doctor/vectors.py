"""Have vectors moved: lengths, centroid, distribution, neighbours of new rows against those of older ones."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from recsys_llm.commands.operations.doctor.findings import Finding, Limits, at_least, at_most
from recsys_llm.commands.operations.opening import StoredView
from recsys_llm.producers.parts import part_files
from recsys_llm.schema import CREATED_TIMESTAMP, EMBEDDING, EVENT_TIMESTAMP, ITEM_ID
from recsys_llm.sources.connection import open_duckdb, quoted
from recsys_llm.storage import VectorStorage

ROWS = 20_000
"""Of each kind, at most."""
NEW_SHARE = 0.2
"""The last fifth of the rows, in the order in which they were computed, are the new ones."""
APART = timedelta(hours=12)
"""Rows that were all computed within less are of one run: nothing had time to move, and their order is the run's."""
FEWEST = 20
NEIGHBOURS = 10
BINS = 10

Floats = npt.NDArray[np.float32]


def check_drift(view: StoredView, limits: Limits) -> Iterator[Finding]:
    """Compare the vectors of new and older rows; one run, or few rows, or no vectors give nothing to compare."""
    if not any(field.name == EMBEDDING for field in view.definition.features):
        return
    if _computed_within(view) < APART:
        yield Finding("drift", view.name, True, f"all rows were computed within {APART}: nothing older to compare with")
        return
    older, newer, repeated = _samples(view)
    if min(len(older), len(newer)) < FEWEST:
        yield Finding(
            "drift", view.name, True, f"{len(older)} older and {len(newer)} new vectors are too few to compare"
        )
        return
    norms = [float(np.linalg.norm(vectors, axis=1).mean()) for vectors in (older, newer)]
    shift = abs(norms[1] - norms[0]) / max(*norms, 1e-12)
    yield at_most(
        "drift", view.name, shift, limits.max_norm_shift, f"mean length {norms[0]:.3f}, of new {norms[1]:.3f}"
    )
    cosine = _cosine(older.mean(axis=0), newer.mean(axis=0))
    yield at_least("drift", view.name, cosine, limits.min_centroid_cosine, f"cosine of centroids {cosine:.3f}")
    centroid = older.mean(axis=0)
    psi = stability_index(older @ centroid, newer @ centroid)
    yield at_most("drift", view.name, psi, limits.max_psi, f"population stability index {psi:.3f}")
    # A user's vector is meant to move with what they do; an item's moves with its text alone.
    if view.join_key == ITEM_ID and len(repeated[0]) >= FEWEST:
        overlap = neighbour_overlap(*repeated)
        detail = f"{overlap:.1%} of {NEIGHBOURS} neighbours stay, of {len(repeated[0])} keys with two vectors"
        yield at_least("drift", view.name, overlap, limits.min_neighbour_overlap, detail)


def stability_index(reference: Floats, current: Floats) -> float:
    """Return the population stability index over deciles of ``reference``; 0: alike, above 0.25: another population.

    Examples
    --------
    >>> values = np.linspace(0, 1, 1000, dtype=np.float32)
    >>> round(stability_index(values, values), 6), stability_index(values, values + 1) > 0.25
    (0.0, True)
    """
    edges = np.quantile(reference, np.linspace(0, 1, BINS + 1)[1:-1])
    shares = [
        np.bincount(np.searchsorted(edges, values), minlength=BINS) / len(values) for values in (reference, current)
    ]
    old, new = (np.maximum(share, 1e-4) for share in shares)
    return float(((new - old) * np.log(new / old)).sum())


def neighbour_overlap(older: Floats, newer: Floats) -> float:
    """Return the mean share of a row's nearest neighbours, by cosine, that both sets of vectors agree on.

    Examples
    --------
    >>> vectors = np.random.default_rng(0).standard_normal((50, 8)).astype(np.float32)
    >>> neighbour_overlap(vectors, vectors * 2)
    1.0
    """
    count = min(NEIGHBOURS, len(older) - 1)
    near = []
    for vectors in (older, newer):
        unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        similar = unit @ unit.T
        np.fill_diagonal(similar, -np.inf)
        near.append(np.argpartition(-similar, count - 1, axis=1)[:, :count])
    shared = [len(set(one) & set(other)) for one, other in zip(near[0].tolist(), near[1].tolist(), strict=True)]
    return float(np.mean(shared) / count)


def _computed_within(view: StoredView) -> timedelta:
    query = f"SELECT max({CREATED_TIMESTAMP}) - min({CREATED_TIMESTAMP}) FROM read_parquet(?)"
    with open_duckdb() as connection:
        (found,) = connection.execute(query, [[str(file) for file in part_files(view.directory)]]).fetchall()
    return found[0] or timedelta(0)


def _samples(view: StoredView) -> tuple[Floats, Floats, tuple[Floats, Floats]]:
    """Return older vectors, new ones, and (older, new) of keys that have both."""
    storage = VectorStorage.of(view.name, view.definition.tags)
    files = [str(file) for file in part_files(view.directory)]
    query = f"""
        WITH ranked AS (
            SELECT {quoted(view.join_key)} AS key, {EMBEDDING} AS vector, {EVENT_TIMESTAMP} AS time,
                percent_rank() OVER (ORDER BY {CREATED_TIMESTAMP}, {EVENT_TIMESTAMP}) >= ? AS is_new
            FROM read_parquet(?) WHERE {EMBEDDING} IS NOT NULL
        )
        SELECT * FROM ranked QUALIFY row_number() OVER (PARTITION BY is_new ORDER BY hash(key), time DESC) <= ?
        ORDER BY key, time
    """
    with open_duckdb() as connection:
        table = connection.execute(query, [1 - NEW_SHARE, files, ROWS]).to_arrow_table()
    vectors = _matrix(table.column("vector"), storage)
    is_new = table.column("is_new").to_numpy(zero_copy_only=False).astype(bool)
    keys: list[Any] = table.column("key").to_pylist()
    old_rows = {keys[place]: place for place in np.flatnonzero(~is_new).tolist()}
    new_rows = {keys[place]: place for place in np.flatnonzero(is_new).tolist()}
    both = sorted(old_rows.keys() & new_rows.keys())[:1000]
    pair = (vectors[[old_rows[key] for key in both]], vectors[[new_rows[key] for key in both]])
    return vectors[~is_new], vectors[is_new], pair


def _matrix(column: pa.ChunkedArray, storage: VectorStorage | None) -> Floats:
    rows = column.to_pylist()
    if storage is None or not storage.is_bytes:
        return np.array(rows, dtype=np.float32)
    stored = np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(len(rows), storage.width)
    return storage.decode(stored)


def _cosine(one: Floats, other: Floats) -> float:
    return float(one @ other / max(float(np.linalg.norm(one) * np.linalg.norm(other)), 1e-12))
