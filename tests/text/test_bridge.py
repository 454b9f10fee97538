"""The map from a new encoder's vectors to an old one's: planted maps come back, and scores are of held-out items."""

from __future__ import annotations

import numpy as np
import pytest

from recsys_llm.errors import TrainingError
from recsys_llm.text.bridge import fit_bridge, measure
from recsys_llm.text.transform import VectorTransform


def vectors(count=300, dim=8, seed=0):
    rng = np.random.default_rng(seed)
    # As text vectors do, these share a direction.
    found = rng.normal(size=(count, dim)) * np.linspace(1, 2, dim) + 0.5
    return found.astype(np.float32)


def unit(found):
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def rotation(dim, seed=1):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(dim, dim)))[0].astype(np.float32)


def mapped(bridge, new):
    return bridge.transform("new", {}).apply(new)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_a_planted_rotation_comes_back_exactly(scale):
    new, turn = vectors(), rotation(8)
    old = scale * new @ turn + np.arange(8, dtype=np.float32)
    bridge = fit_bridge(new, old)
    assert not bridge.normalize
    assert bridge.kind == "orthogonal"
    np.testing.assert_allclose(bridge.matrix, scale * turn, atol=1e-4)
    np.testing.assert_allclose(mapped(bridge, new), old, atol=1e-3)
    assert bridge.scores["orthogonal"]["old_neighbours_kept"] == pytest.approx(1.0)


def test_unit_vectors_stay_unit_vectors():
    new, turn = unit(vectors()), rotation(8)
    bridge = fit_bridge(new, unit(new @ turn))
    assert bridge.normalize
    np.testing.assert_allclose(bridge.matrix.T @ bridge.matrix, np.eye(8), atol=1e-5)
    np.testing.assert_allclose(mapped(bridge, new), new @ turn, atol=1e-5)


@pytest.mark.parametrize(("dim", "old_dim"), [(8, 5), (5, 8), (8, 8)])
def test_ridge_recovers_a_planted_linear_map_into_another_dimension(dim, old_dim):
    new = vectors(dim=dim)
    planted = np.random.default_rng(3).normal(size=(dim, old_dim)).astype(np.float32)
    bridge = fit_bridge(new, new @ planted)
    assert bridge.kind == "ridge"
    assert set(bridge.scores) == ({"ridge"} if dim != old_dim else {"ridge", "orthogonal"})
    np.testing.assert_allclose(bridge.matrix, planted, atol=1e-3)
    assert bridge.scores["ridge"]["cosine"] == pytest.approx(1.0, abs=1e-5)
    if dim == old_dim:
        assert bridge.scores["orthogonal"]["cosine"] < 0.99


def test_noise_asks_for_a_penalty_and_scores_are_of_held_out_items():
    rng = np.random.default_rng(5)
    new = rng.normal(size=(120, 60)).astype(np.float32)
    noise = rng.normal(size=(120, 60)).astype(np.float32)
    # Nothing connects the two: what a map remembers of its own items must not count.
    bridge = fit_bridge(new, noise)
    assert bridge.items == {"fitted": 108, "held_out": 12}
    for scores in bridge.scores.values():
        assert abs(scores["cosine"]) < 0.25
        assert scores["old_neighbours_kept"] < 0.4
    remembered = measure(bridge, new, noise, np.arange(108))
    assert remembered["cosine"] > 0.25
    assert fit_bridge(new, noise[:, :9]).penalty > fit_bridge(new, new[:, :9]).penalty


def test_neighbour_scores_match_a_plain_count():
    new, old = vectors(60, seed=1), vectors(60, 6, seed=2)
    bridge, asked = fit_bridge(new, old), np.array([3, 17, 40])
    found = measure(bridge, new, old, asked)

    def nearest(queries, pool, row):
        cosines = unit(pool) @ unit(queries)[row]
        cosines[row] = -np.inf
        return set(np.argsort(-cosines)[:20])

    moved = mapped(bridge, new)
    for name, one, other in (
        ("old_neighbours_kept", (old, old), (moved, old)),
        ("old_neighbours_kept_mapped", (old, old), (moved, moved)),
        ("old_neighbours_kept_unmapped", (old, old), (new, new)),
        ("new_neighbours_kept", (new, new), (moved, moved)),
    ):
        shares = [len(nearest(*one, row) & nearest(*other, row)) / 20 for row in asked]
        assert found[name] == pytest.approx(np.mean(shares)), name


def test_the_saved_map_says_what_was_measured(tmp_path):
    new = vectors()
    bridge = fit_bridge(new, new @ rotation(8))
    bridge.transform("fingerprint of new", {"bridges": "old", "trained_until": "2024-01-01T00:00:00+00:00"}).save(
        tmp_path / "map"
    )
    loaded = VectorTransform.load(tmp_path / "map")
    assert (loaded.kind, loaded.input_fingerprint, loaded.notes["bridges"]) == ("bridge", "fingerprint of new", "old")
    assert loaded.notes["scores"]["orthogonal"] == bridge.scores["orthogonal"]
    assert loaded.trained_until.year == 2024
    np.testing.assert_array_equal(loaded.apply(new), mapped(bridge, new))


def test_the_same_vectors_give_the_same_map():
    new, old = vectors(), vectors(dim=6, seed=2)
    one, other = fit_bridge(new, old), fit_bridge(new, old)
    np.testing.assert_array_equal(one.matrix, other.matrix)
    assert one.scores == other.scores


@pytest.mark.parametrize(
    ("new", "old", "message"),
    [
        (vectors(49), vectors(49), "at least 50 items .* found 49"),
        (vectors(60), vectors(59), "found 59"),
        (vectors(60), np.full((60, 3), np.nan, np.float32), "not finite"),
    ],
)
def test_refusals(new, old, message):
    with pytest.raises(TrainingError, match=message):
        fit_bridge(new, old)
