"""A linear map behind an encoder: saved whole, checked on loading, bound to its encoder, one with the fingerprint."""

from __future__ import annotations

import numpy as np
import pytest

from recsys_llm.errors import CheckpointError, ModelError
from recsys_llm.files import read_signed_json, signed_json
from recsys_llm.text import TextEncoder
from recsys_llm.text.transform import VectorTransform

TEXTS = ["a fox", "the doll of a heart", "", "two games"]


@pytest.fixture(scope="module")
def tiny(tiny_bert):
    return TextEncoder.load(tiny_bert, device="cpu", max_tokens=64)


def transform_for(fingerprint, *, new_dim=8, seed=0, **settings):
    rng = np.random.default_rng(seed)
    mean, matrix = rng.normal(size=32).astype(np.float32), rng.normal(size=(32, new_dim)).astype(np.float32)
    return VectorTransform("pca", fingerprint, mean, matrix, **settings)


@pytest.mark.parametrize("normalize", [True, False])
def test_an_encoder_applies_its_map(tiny, tiny_bert, tmp_path, normalize):
    fitted = transform_for(tiny.fingerprint, normalize=normalize)
    fitted.save(tmp_path / "map")
    encoder = TextEncoder.load(tiny_bert, device="cpu", max_tokens=64, transform=tmp_path / "map")
    plain = tiny.encode(TEXTS).astype(np.float64)
    expected = (plain - fitted.mean) @ fitted.matrix
    if normalize:
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    found = encoder.encode(TEXTS)
    assert found.dtype == np.float32 and encoder.dim == found.shape[1] == 8
    np.testing.assert_allclose(found, expected, atol=1e-5)
    alone = np.concatenate([encoder.encode([text]) for text in TEXTS])
    np.testing.assert_allclose(found, alone, atol=1e-6 if normalize else 1e-5)
    assert encoder.fingerprint == fitted.fingerprint != tiny.fingerprint


def test_everything_that_decides_a_vector_is_in_the_fingerprint(tiny):
    made = [
        transform_for(tiny.fingerprint),
        transform_for("other"),
        transform_for(tiny.fingerprint, seed=1),
        transform_for(tiny.fingerprint, normalize=False),
        transform_for(tiny.fingerprint, storage="int8", scale=0.5),
        transform_for(tiny.fingerprint, storage="int8", scale=0.6),
    ]
    assert len({one.fingerprint for one in made}) == len(made)
    assert transform_for(tiny.fingerprint, notes={"recall": 1}).fingerprint == made[0].fingerprint
    until = {"trained_until": "2024-01-01T00:00:00+00:00"}
    assert transform_for(tiny.fingerprint, notes=until).fingerprint != made[0].fingerprint


def test_what_is_saved_is_loaded(tmp_path):
    fitted = transform_for("f" * 32, storage="int8", scale=0.25, notes={"recall": 0.5})
    fitted.save(tmp_path / "map")
    fitted.save(tmp_path / "map")
    found = VectorTransform.load(tmp_path / "map")
    assert found.fingerprint == fitted.fingerprint and dict(found.notes) == {"recall": 0.5}
    np.testing.assert_array_equal(found.matrix, fitted.matrix)


def test_a_map_of_another_encoder_is_refused(tiny, tiny_bert, tmp_path):
    transform_for("0" * 32).save(tmp_path / "map")
    with pytest.raises(
        ModelError, match=f"has fingerprint {tiny.fingerprint}, its transform was fitted to .*{'0' * 32}"
    ):
        TextEncoder.load(tiny_bert, device="cpu", max_tokens=64, transform=tmp_path / "map")


def test_a_changed_byte_a_missing_file_or_another_format_is_refused(tmp_path):
    target = tmp_path / "map"
    transform_for("f").save(target)
    tensors = (target / "transform.safetensors").read_bytes()
    (target / "transform.safetensors").write_bytes(tensors[:-1] + bytes([tensors[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="altered or truncated"):
        VectorTransform.load(target)
    transform_for("f").save(target)
    text = (target / "transform.json").read_text()
    (target / "transform.json").write_text(text.replace('"normalize": true', '"normalize": false'))
    with pytest.raises(CheckpointError, match="altered or truncated since it was written"):
        VectorTransform.load(target)
    (target / "transform.json").write_bytes(signed_json({**read_signed_json(text.encode()), "format": 9}))
    with pytest.raises(CheckpointError, match="expected format 1, found 9"):
        VectorTransform.load(target)
    with pytest.raises(CheckpointError, match="no readable transform"):
        VectorTransform.load(tmp_path / "none")


def test_a_directory_with_something_else_is_kept(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="holds no transform.json"):
        transform_for("f").save(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"
