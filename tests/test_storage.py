"""Vectors to stored bytes and back: exact, row by row, and refused where a tag makes no sense."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from recsys_llm.errors import ConfigError
from recsys_llm.schema import VECTOR_TAG, vector_tag
from recsys_llm.storage import STORAGES, VectorStorage

FORMS = [VectorStorage("float32", 11), VectorStorage("int8", 11, 0.31), VectorStorage("binary", 11)]
VECTORS = hnp.arrays(np.float32, st.tuples(st.integers(0, 9), st.just(11)), elements=st.floats(-2, 2, width=32))


def raw(stored, vectors):
    codes = stored.encode(vectors)
    assert codes.flags.c_contiguous
    return codes.view(np.uint8).reshape(len(vectors), stored.width)


def test_known_codes():
    vectors = np.array([[0.31, -0.155, 0.0, 9.0, -9.0, 0.001, 0.002, 0, 0, 0, -0.31]], np.float32)
    int8 = VectorStorage("int8", 11, 0.31)
    codes = int8.encode(vectors)
    assert codes.dtype == np.int8
    assert codes.tolist() == [[127, -64, 0, 127, -127, 0, 1, 0, 0, 0, -127]]
    expected = np.array(codes[0], np.float32) * np.float32(0.31 / 127)
    assert int8.decode(codes.view(np.uint8)).tolist() == [expected.tolist()]
    binary = VectorStorage("binary", 11)
    bits = binary.encode(vectors)
    assert bits.dtype == np.uint8
    assert bits.tolist() == [[0b10010110, 0b00000000]]
    positive = np.float32(1 / np.sqrt(11))
    assert binary.decode(bits).tolist() == [(np.where(vectors[0] > 0, positive, -positive)).tolist()]


@pytest.mark.parametrize("stored", FORMS, ids=str)
@given(vectors=VECTORS)
def test_a_row_depends_on_nothing_else(stored, vectors):
    together = raw(stored, vectors)
    decoded = stored.decode(together)
    assert decoded.dtype == np.float32
    assert decoded.shape == vectors.shape
    for row, vector in enumerate(vectors):
        assert raw(stored, vector[None, :]).tobytes() == together[row].tobytes()
        assert stored.decode(together[row][None, :]).tobytes() == decoded[row].tobytes()
        strided = np.asfortranarray(np.stack([vector, -vector]))
        assert raw(stored, strided)[0].tobytes() == together[row].tobytes()


@pytest.mark.parametrize("stored", FORMS, ids=str)
@given(vectors=VECTORS)
def test_what_was_decoded_is_encoded_to_the_same_bytes(stored, vectors):
    once = raw(stored, vectors)
    assert raw(stored, stored.decode(once)).tobytes() == once.tobytes()


@given(vectors=VECTORS)
def test_int8_is_off_by_half_a_step_at_most_within_its_scale(vectors):
    stored = VectorStorage("int8", 11, 2.0)
    error = np.abs(stored.decode(raw(stored, vectors)) - vectors)
    assert (error <= 2.0 / 127 / 2 + 1e-6).all()


@given(vectors=VECTORS)
def test_float32_is_what_it_was(vectors):
    stored = VectorStorage("float32", 11)
    assert stored.decode(raw(stored, vectors)).tobytes() == vectors.tobytes()


def test_a_decoded_bit_vector_has_length_one():
    stored = VectorStorage("binary", 13)
    vectors = np.random.default_rng(0).normal(size=(5, 13)).astype(np.float32)
    assert np.linalg.norm(stored.decode(raw(stored, vectors)), axis=1) == pytest.approx(1.0, abs=1e-6)


def test_bits_are_those_of_sentence_transformers():
    quantization = pytest.importorskip("sentence_transformers.util.quantization")
    vectors = np.random.default_rng(0).normal(size=(7, 24)).astype(np.float32)
    expected = quantization.quantize_embeddings(vectors, "ubinary")
    assert VectorStorage("binary", 24).encode(vectors).tobytes() == expected.tobytes()


@pytest.mark.parametrize("stored", FORMS, ids=str)
def test_a_tag_says_all(stored):
    assert VectorStorage.of("v", stored.tags) == stored
    assert VectorStorage.of("v", {}) is None
    assert stored.storage in STORAGES


@pytest.mark.parametrize(
    ("tag", "message"),
    [
        ("[1]", "view v: tag 'recsys_llm_vector'"),
        ("{", "view v: tag 'recsys_llm_vector'"),
        ('{"storage": "int4", "dim": 8}', "unknown 'int4'; did you mean 'int8'"),
        ('{"storage": "int8", "dim": 8}', "scale: int8 has one"),
        ('{"storage": "binary", "dim": 8, "scale": 0.1}', "scale: int8 has one"),
        ('{"storage": "int8", "dim": 8, "scale": -1}', "expected a number above 0, found -1"),
        ('{"storage": "int8", "dim": 8, "scale": NaN}', "expected a number above 0, found nan"),
        ('{"storage": "int8", "dim": 8, "scale": "0.1"}', "expected a number above 0, found '0.1'"),
        ('{"storage": "binary", "dim": 0}', "expected the length of a vector, 1 or more, found 0"),
        ('{"storage": "binary", "dim": "8"}', "found '8'"),
        ('{"storage": "binary"}', "dim"),
        ('{"storage": "binary", "dim": 8, "bits": 1}', "bits"),
    ],
)
def test_a_tag_that_makes_no_sense_is_refused(tag, message):
    with pytest.raises(ConfigError, match=message):
        VectorStorage.of("v", {VECTOR_TAG: tag})


def test_a_scale_survives_the_tag_to_the_last_bit():
    scale = float(np.nextafter(0.3, 1))
    tag = vector_tag("int8", dim=8, scale=scale)
    assert json.loads(tag[VECTOR_TAG])["scale"] == scale
    assert VectorStorage.of("v", tag) == VectorStorage("int8", 8, scale)
