"""Candidates and their choice: PCA against plain algebra, calibration, the front against brute force."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_llm.errors import TrainingError
from recsys_llm.storage import VectorStorage
from recsys_llm.text.compression import (
    FULL,
    calibrate,
    fit_candidates,
    measure,
    pareto_front,
    principal_components,
    smallest_that_keeps,
    there_and_back,
)
from recsys_llm.text.evaluation import NextItemPairs, evaluate_vectors

UNTIL = datetime(2024, 1, 1, tzinfo=UTC)


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def vectors():
    """Clusters of 4 around 40 centres, hard to tell apart, with variance that falls off, and a common direction."""
    rng = np.random.default_rng(0)
    spread = np.linspace(1, 0.05, 300)
    centres = rng.normal(size=(40, 300)) * spread
    return unit(np.repeat(centres, 4, axis=0) + 0.9 * rng.normal(size=(160, 300)) * spread + 0.5)


@pytest.fixture(scope="module")
def fitted(vectors):
    return fit_candidates(vectors, "f" * 32, until=UNTIL)


@pytest.fixture(scope="module")
def pairs(vectors):
    query = np.arange(len(vectors))
    target = query // 4 * 4 + (query + 1) % 4
    return NextItemPairs(query, target, query // 2, np.zeros(len(query), np.int64), np.zeros(len(query), np.bool_))


@pytest.fixture(scope="module")
def measured(fitted, vectors, pairs):
    return dict(measure(fitted, vectors, pairs, k=3))


def test_principal_components_are_those_of_the_decomposition(vectors):
    mean, found = principal_components(vectors)
    exact = vectors.astype(np.float64)
    np.testing.assert_allclose(mean, exact.mean(axis=0), atol=1e-7)
    _, singular, rows = np.linalg.svd(exact - exact.mean(axis=0), full_matrices=False)
    rank = int((singular > 1e-6 * singular[0]).sum())
    assert rank == 159
    np.testing.assert_allclose(np.abs((rows[:40] * found[:, :40].T).sum(axis=1)), 1.0, atol=1e-5)
    np.testing.assert_allclose(found.T @ found, np.eye(300), atol=1e-5)
    variances = ((exact - mean) @ found[:, :rank]).var(axis=0)
    np.testing.assert_allclose(variances, singular[:rank] ** 2 / len(vectors), rtol=1e-4, atol=1e-9)
    largest = found[np.abs(found).argmax(axis=0), np.arange(300)]
    assert (largest > 0).all()


def test_components_depend_neither_on_the_order_nor_on_the_sign(vectors):
    _, found = principal_components(vectors)
    _, shuffled = principal_components(vectors[::-1].copy())
    _, negated = principal_components(-vectors)
    np.testing.assert_allclose(shuffled[:, :40], found[:, :40], atol=1e-5)
    np.testing.assert_allclose(negated[:, :40], found[:, :40], atol=1e-5)


def test_every_combination_that_applies_is_fitted(fitted, vectors):
    lengths = {"full": 300, "truncate256": 256, "truncate128": 128, "pca128": 128, "truncate64": 64, "pca64": 64}
    # 160 items span no 256 directions.
    assert list(fitted) == [f"{name}_{storage}" for name in lengths for storage in ("float32", "int8", "binary")]
    for name, transform in fitted.items():
        assert transform.dim == lengths[name.rpartition("_")[0]]
        assert transform.fingerprint not in {other.fingerprint for key, other in fitted.items() if key != name}
        mapped = transform.apply(vectors)
        assert np.linalg.norm(mapped, axis=1) == pytest.approx(1.0, abs=1e-5)
    np.testing.assert_array_equal(fitted["full_binary"].apply(vectors), unit(vectors))
    np.testing.assert_allclose(fitted["truncate64_int8"].apply(vectors), unit(vectors[:, :64]), atol=1e-6)


def test_what_learned_from_texts_says_until_when(fitted):
    learned = {name for name, transform in fitted.items() if transform.trained_until == UNTIL}
    assert learned == {name for name in fitted if name.startswith("pca") or name.endswith("int8")}
    assert all(fitted[name].trained_until is None for name in set(fitted) - learned)


def test_fitting_again_gives_the_same(fitted, vectors):
    again = fit_candidates(vectors, "f" * 32, until=UNTIL)
    assert {name: one.fingerprint for name, one in again.items()} == {
        name: one.fingerprint for name, one in fitted.items()
    }


def test_a_text_has_the_same_codes_alone_and_in_a_batch(fitted, vectors):
    """Up to one step: the map is a product in float32, whose last bit may depend on the batch."""
    for transform in (fitted["pca64_int8"], fitted["truncate128_int8"]):
        together = transform.stored.encode(transform.apply(vectors)).astype(np.int64)
        alone = np.concatenate([transform.stored.encode(transform.apply(row[None, :])) for row in vectors])
        assert np.abs(alone - together).max() <= 1
        assert (alone != together).mean() < 1e-3


def test_calibration_cuts_the_few_that_cost_the_many():
    rng = np.random.default_rng(0)
    plain = rng.uniform(-0.1, 0.1, size=(10_000, 20)).astype(np.float32)
    scale, notes = calibrate(plain)
    assert scale == pytest.approx(0.1, abs=1e-3)
    assert notes["share_cut"] < 2e-3
    outlier = plain.copy()
    outlier[3, 4] = 0.2
    scale, notes = calibrate(outlier)
    assert scale == pytest.approx(0.1, abs=1e-3)
    assert 0 < notes["share_cut"] < 2e-3
    tried = [float(f"{value:.4g}") for value in np.quantile(np.abs(outlier), [0.99, 0.999, 0.9999, 1.0])]
    errors = [np.square(there_and_back(outlier, VectorStorage("int8", 20, one)) - outlier).mean() for one in tried]
    assert scale == tried[int(np.argmin(errors))]
    assert notes["mean_squared_error"] == pytest.approx(min(errors), rel=1e-5)


def test_nothing_to_calibrate_by_still_gives_a_scale():
    assert calibrate(np.zeros((3, 4), np.float32))[0] == 1.0


def test_no_vectors_and_broken_ones_are_refused(vectors):
    for wrong in (vectors[:0], np.where(vectors > 0.1, np.float32(np.nan), vectors)):
        with pytest.raises(TrainingError, match="expected finite vectors of items"):
            fit_candidates(wrong, "f", until=UNTIL)


def test_quality_is_that_of_the_decoded_vectors(fitted, vectors, pairs, measured):
    found = measured
    assert next(iter(found)) == FULL
    assert set(found) == set(fitted)
    full = evaluate_vectors(unit(vectors), pairs, k=3)
    np.testing.assert_array_equal(found[FULL].scores.recall, full.recall)
    assert (found[FULL].recall_kept, found[FULL].recall_difference.ci95) == (1.0, (0.0, 0.0))
    bits = np.where(fitted["pca64_binary"].apply(vectors) > 0, 1.0, -1.0)
    expected = evaluate_vectors(unit(bits), pairs, k=3)
    quality = found["pca64_binary"]
    assert quality.recall == pytest.approx(expected.mean("recall"))
    assert quality.recall_kept == pytest.approx(expected.mean("recall") / full.mean("recall"))
    assert quality.ndcg_difference.difference == pytest.approx(expected.mean("ndcg") - full.mean("ndcg"))
    assert found["full_int8"].recall_kept > 0.95
    assert found["truncate64_binary"].recall < found["full_float32"].recall


points = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=12)


@given(points)
def test_the_front_is_what_no_other_beats(made):
    quality, size = [float(q) for q, _ in made], [float(s) for _, s in made]
    expected = [
        not any(q2 >= q and s2 <= s and (q2 > q or s2 < s) for q2, s2 in zip(quality, size, strict=True))
        for q, s in zip(quality, size, strict=True)
    ]
    assert pareto_front(quality, size) == expected


def test_the_smallest_that_keeps_enough_is_chosen(fitted, measured):
    found = measured
    sizes = {name: float(transform.stored.width) for name, transform in fitted.items()}
    for keep in (0.0, 0.5, 0.8, 0.95, 1.0):
        name = smallest_that_keeps(found, sizes, keep=keep)
        able = [each for each in found if min(found[each].recall_kept, found[each].ndcg_kept) >= keep]
        assert sizes[name] == min(sizes[each] for each in able)
        assert name in able
    assert smallest_that_keeps({FULL: found[FULL]}, sizes, keep=0.5) == FULL
    assert smallest_that_keeps({}, sizes, keep=0.5) == FULL
