"""A view is refused whose declaration is not that of its model's vectors."""

from __future__ import annotations

from datetime import timedelta

import pytest
from feast import Entity, FeatureView, Field, FileSource, ValueType
from feast.types import Array, Bytes, Float32, String

from recsys_llm import schema
from recsys_llm.engine.vectors import check_vectors
from recsys_llm.errors import ConfigError
from recsys_llm.storage import VectorStorage

INT8, OTHER = VectorStorage("int8", 8, 0.3), VectorStorage("int8", 8, 0.4)
BINARY, FLOATS = VectorStorage("binary", 8), VectorStorage("float32", 8)
FLOAT_LIST = Array(Float32)


def view(dtype, declared, **settings):
    return FeatureView(
        name="v",
        entities=[Entity(name="item", join_keys=["item_id"], value_type=ValueType.STRING)],
        ttl=timedelta(0),
        schema=[Field(name="item_id", dtype=String), Field(name="embedding", dtype=dtype, **settings)],
        source=FileSource(name="v_parts", path="v", timestamp_field="event_timestamp"),
        tags={} if declared is None else declared.tags,
    )


def manifest(made):
    return {"fingerprint": "f"} if made is None else {"fingerprint": "f", "vector": made.tags[schema.VECTOR_TAG]}


@pytest.mark.parametrize(
    ("dtype", "declared", "made"),
    [
        (Bytes, INT8, INT8),
        (Bytes, BINARY, BINARY),
        (FLOAT_LIST, FLOATS, FLOATS),
        (FLOAT_LIST, None, FLOATS),
        (FLOAT_LIST, None, None),
    ],
)
def test_a_view_that_says_what_its_model_makes(dtype, declared, made):
    check_vectors(view(dtype, declared), manifest(made))


@pytest.mark.parametrize(
    ("dtype", "declared", "made", "message"),
    [
        (
            Bytes,
            OTHER,
            INT8,
            r"makes int8 of length 8, scale 0.3, .* found a tag for int8 of length 8, scale 0.4; give",
        ),
        (Bytes, INT8, BINARY, r'found a tag for int8.*schema.vector_tag\("binary", dim=8\)'),
        (Bytes, None, INT8, r'found no such tag; give it tags=.*schema.vector_tag\("int8", dim=8, scale=0.3\)'),
        (Bytes, INT8, FLOATS, "makes float32 of length 8, .* found a tag for int8 .*; remove the tag"),
        (Bytes, INT8, None, "its producer makes no text vectors"),
        (Bytes, None, FLOATS, r"expected embedding of type Array\(Float32\), found Bytes"),
        (FLOAT_LIST, INT8, INT8, r"expected embedding of type Bytes, found Array\(Float32\)"),
        (FLOAT_LIST, VectorStorage("float32", 9), FLOATS, "found a tag for float32 of length 9; remove the tag"),
    ],
)
def test_a_view_that_says_something_else(dtype, declared, made, message):
    with pytest.raises(ConfigError, match=message):
        check_vectors(view(dtype, declared), manifest(made))


def test_a_declared_length_is_compared():
    declared = view(FLOAT_LIST, None, vector_index=True, vector_length=9, vector_search_metric="cosine")
    with pytest.raises(ConfigError, match="makes vectors of length 8, embedding is declared with vector_length=9"):
        check_vectors(declared, manifest(FLOATS))
