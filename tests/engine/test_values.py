"""Stored values against Feast's own conversion, byte by byte."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from feast import ValueType
from feast.infra.online_stores.helpers import extract_text_and_num
from feast.type_map import python_values_to_proto_values
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_llm.engine.values import stored_texts, stored_values

FLOATS = st.floats(width=32)
INTS = {32: st.integers(-(2**31), 2**31 - 1), 64: st.integers(-(2**53), 2**53)}  # Feast rounds larger ones beside nulls
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
ELEMENTS = {
    "FLOAT": (pa.float32(), FLOATS),
    "DOUBLE": (pa.float64(), st.floats()),
    "INT32": (pa.int32(), INTS[32]),
    "INT64": (pa.int64(), INTS[64]),
    "BOOL": (pa.bool_(), st.booleans()),
    "STRING": (pa.string(), TEXTS),
    "BYTES": (pa.binary(), st.binary(min_size=1, max_size=300)),
}
TYPES = {
    **{name: (kind, values) for name, (kind, values) in ELEMENTS.items()},
    **{f"{name}_LIST": (pa.list_(kind), st.lists(values, max_size=20)) for name, (kind, values) in ELEMENTS.items()},
}


def feasts(column, value_type):
    return python_values_to_proto_values(column.to_numpy(zero_copy_only=False), value_type)


@pytest.mark.parametrize("name", TYPES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_the_bytes_are_feasts(name, data):
    kind, values = TYPES[name]
    drawn = data.draw(st.lists(st.none() | values, max_size=30))
    skipped = data.draw(st.integers(0, 3))  # a slice of a longer array, as a batch of a table is
    column = pa.array([*drawn[:skipped], *drawn], kind).slice(len(drawn[:skipped]))
    value_type = ValueType[name]
    expected = feasts(column, value_type)
    stored = stored_values(column, value_type)
    assert stored == [value.SerializeToString() for value in expected]
    assert stored_texts(column, value_type, stored) == [extract_text_and_num(value, False)[0] for value in expected]


def test_a_vector_is_a_constant_head_and_its_floats():
    matrix = np.arange(8, dtype=np.float32).reshape(2, 4)
    stored = stored_values(pa.array(matrix.tolist(), pa.list_(pa.float32())), ValueType.FLOAT_LIST)
    assert stored[1] == bytes.fromhex("8201 12 0a 10") + matrix[1].tobytes()


@pytest.mark.parametrize(
    ("column", "value_type"),
    [
        (pa.array([1.5, None], pa.float64()), ValueType.FLOAT),  # another width than the feature's
        (pa.array([1, None], pa.int64()), ValueType.FLOAT),
        (pa.array([[1.5], None], pa.list_(pa.float64())), ValueType.FLOAT_LIST),
        (pa.array([["a", None]], pa.list_(pa.string())), ValueType.STRING_LIST),  # a null within a list
        (pa.array([[1.0, None]], pa.list_(pa.float32())), ValueType.FLOAT_LIST),
        (pa.array([None, None], pa.null()), ValueType.FLOAT),
        (pa.array([1_700_000_000_000_000], pa.timestamp("us", "UTC")), ValueType.UNIX_TIMESTAMP),
        (pa.array([[1.5, 2.5]], pa.large_list(pa.float32())), ValueType.FLOAT_LIST),
    ],
    ids=str,
)
def test_other_columns_are_converted_by_feast(column, value_type):
    expected = feasts(column, value_type)
    stored = stored_values(column, value_type)
    assert stored == [value.SerializeToString() for value in expected]
    assert stored_texts(column, value_type, stored) == [extract_text_and_num(value, False)[0] for value in expected]


def test_where_feast_loses_what_it_was_given():
    large = 2**53 + 1
    column = pa.array([large, None], pa.int64())
    assert feasts(column, ValueType.INT64)[0].int64_val == large - 1
    whole = feasts(column.drop_null(), ValueType.INT64)[0].SerializeToString()
    assert stored_values(column, ValueType.INT64) == [whole, b""]
    nothing = pa.array([b""], pa.binary())
    assert feasts(nothing, ValueType.BYTES)[0].WhichOneof("val") is None
    (stored,) = stored_values(nothing, ValueType.BYTES)
    assert stored == feasts(pa.array([b"", b"x"], pa.binary()), ValueType.BYTES)[0].SerializeToString()
