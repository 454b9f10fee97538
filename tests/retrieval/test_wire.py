"""Feast's stored bytes are read as protobuf reads them."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from feast.protos.feast.types.Value_pb2 import (
    BytesList,
    DoubleList,
    FloatList,
    Int32List,
    Int64List,
    StringList,
)
from feast.protos.feast.types.Value_pb2 import Value as ValueProto
from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import example, given, settings
from hypothesis import strategies as st

from recsys_llm.errors import LayoutError
from recsys_llm.retrieval.decode import decode, decode_timestamps
from recsys_llm.retrieval.service import Feature, View
from recsys_llm.retrieval.stored import Kind
from recsys_llm.retrieval.wire import (
    FIELDS,
    WireError,
    bytes_prefix,
    float_list_prefix,
    parse_timestamp,
    parse_value,
)

INT64, INT32 = st.integers(-(2**63), 2**63 - 1), st.integers(-(2**31), 2**31 - 1)
FLOAT = st.floats(width=32)
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
SECONDS = st.integers(-62135596800, 253402300799)
VALUES = st.one_of(
    st.builds(lambda v: ValueProto(float_val=v), FLOAT),
    st.builds(lambda v: ValueProto(double_val=v), st.floats()),
    st.builds(lambda v: ValueProto(int64_val=v), INT64),
    st.builds(lambda v: ValueProto(int32_val=v), INT32),
    st.builds(lambda v: ValueProto(bool_val=v), st.booleans()),
    st.builds(lambda v: ValueProto(string_val=v), TEXT),
    st.builds(lambda v: ValueProto(bytes_val=v), st.binary()),
    st.builds(lambda v: ValueProto(null_val=0), st.none()),
    st.builds(lambda v: ValueProto(float_list_val=FloatList(val=v)), st.lists(FLOAT)),
    st.builds(lambda v: ValueProto(double_list_val=DoubleList(val=v)), st.lists(st.floats())),
    st.builds(lambda v: ValueProto(int64_list_val=Int64List(val=v)), st.lists(INT64)),
    st.builds(lambda v: ValueProto(int32_list_val=Int32List(val=v)), st.lists(INT32)),
    st.builds(lambda v: ValueProto(string_list_val=StringList(val=v)), st.lists(TEXT)),
    st.builds(lambda v: ValueProto(bytes_list_val=BytesList(val=v)), st.lists(st.binary())),
    st.just(ValueProto()),
)
READ = {name for name, _ in FIELDS.values() if not name.endswith("_set_val")} & {
    "float_val", "double_val", "int64_val", "int32_val", "bool_val", "string_val", "bytes_val",
    "float_list_val", "double_list_val", "int64_list_val", "int32_list_val", "string_list_val",
}  # fmt: skip


def protobuf(data):
    """Return what protobuf reads: a field and its value, as bytes where floats are compared."""
    proto = ValueProto.FromString(data)
    name = proto.WhichOneof("val")
    if name not in READ:
        return name, None
    found = getattr(proto, name)
    return name, tuple(found.val) if name.endswith("_list_val") else found


def same(one, other):
    return repr(one) == repr(other)  # NaN equals itself, and -0.0 is not 0.0


def test_the_fields_are_feasts():
    wires = {1: 1, 2: 5, 3: 0, 5: 0, 8: 0, 9: 2, 11: 2, 12: 2, 14: 0}
    assert {f.number: (f.name, wires[f.type]) for f in ValueProto.DESCRIPTOR.fields} == FIELDS


@given(VALUES)
def test_values_are_protobufs(value):
    data = value.SerializeToString()
    assert same(parse_value(data), protobuf(data))


@settings(max_examples=400)
@given(st.lists(VALUES, min_size=1, max_size=3), st.data())
@example([ValueProto(int64_val=-1)], None)
def test_altered_bytes_are_read_or_refused_as_protobuf_does(values, data):
    raw = bytearray(b"".join(value.SerializeToString() for value in values))
    if data is not None and raw:
        for _ in range(data.draw(st.integers(0, 3))):
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
        raw = raw[: data.draw(st.integers(0, len(raw)))]
    try:
        expected = protobuf(bytes(raw))
    except DecodeError:
        # Nested messages that no feature has are not looked into.
        try:
            assert parse_value(bytes(raw))[1] is None
        except WireError:
            return
        return
    assert same(parse_value(bytes(raw)), expected)


@pytest.mark.parametrize("length", [0, 1, 31, 32, 384, 5000])
def test_prefixes(length):
    floats = ValueProto(float_list_val=FloatList(val=[1.0] * length)).SerializeToString()
    assert floats == float_list_prefix(length) + struct.pack("<f", 1.0) * length
    assert ValueProto(bytes_val=b"x" * length).SerializeToString() == bytes_prefix(length) + b"x" * length


def stamp(seconds, nanos):
    return Timestamp(seconds=seconds, nanos=nanos).SerializeToString()


def view_of(kind, dimension=None):
    feature = Feature("f", "v__f", kind, dimension)
    return View("v", "item", 0, (feature,), False, None, None), feature


@given(st.lists(st.tuples(SECONDS, st.integers(0, 10**9 - 1) | st.just(0)), max_size=40), st.booleans())
@example([(0, 0), (0, 5_000), (2**31, 0), (-1, 999_999_999), (268435455, 0), (268435456, 0)] * 2, True)
@example([(1_700_000_000 + n, 0) for n in range(20)], False)
@example([(1_700_000_000, 999_999_999)] * 20, True)
def test_timestamps_are_protobufs(times, gaps):
    data = [stamp(*time) for time in times] + [None] * gaps
    expected = [seconds * 1_000_000 + nanos // 1_000 for seconds, nanos in times] + [0] * gaps
    view, _ = view_of(Kind.SCALAR)
    assert decode_timestamps(data, view, ["i"] * len(data)).tolist() == expected
    assert [parse_timestamp(value) for value in data if value] == [e for e, v in zip(expected, data, strict=True) if v]


@pytest.mark.parametrize("altered", [b"\x08", b"\x08\x80\x80\x80\x80", b"\x08\x80\x80\x80\x80\x06\x10", b"garbage"])
def test_altered_timestamps_are_named(altered):
    view, _ = view_of(Kind.SCALAR)
    with pytest.raises(LayoutError, match="view v, item_id='b': expected a timestamp, found"):
        decode_timestamps([stamp(1, 0), altered], view, ["a", "b"])
    with pytest.raises(LayoutError, match="view v, item_id='b': expected a timestamp, found"):
        decode_timestamps([stamp(1, 0), altered, *[stamp(2, 3)] * 30], view, ["a", "b", *"c" * 30])


SCALARS = st.one_of(
    st.builds(lambda v: ValueProto(float_val=v), FLOAT),
    st.builds(lambda v: ValueProto(double_val=v), st.floats()),
    st.builds(lambda v: ValueProto(int64_val=v), INT64),
    st.builds(lambda v: ValueProto(int32_val=v), INT32),
    st.builds(lambda v: ValueProto(bool_val=v), st.booleans()),
    st.just(ValueProto()),
    st.none(),
)


@given(st.lists(SCALARS, max_size=20))
@example([ValueProto(int64_val=2**53 + 1), ValueProto(double_val=1e300), ValueProto(int32_val=-1)])
def test_columns_of_numbers_are_the_numbers(values):
    view, feature = view_of(Kind.SCALAR)
    data = [None if value is None else value.SerializeToString() for value in values]
    expected = np.full(len(values), np.nan, dtype=np.float32)
    with np.errstate(over="ignore"):
        for row, value in enumerate(values):
            if value is not None and value.WhichOneof("val"):
                expected[row] = getattr(value, value.WhichOneof("val"))
    assert decode(data, view, feature, ["i"] * len(data)).tobytes() == expected.tobytes()


@given(st.lists(st.none() | st.lists(FLOAT, min_size=3, max_size=3), max_size=9), st.booleans())
def test_columns_of_vectors_are_the_vectors(vectors, known):
    view, feature = view_of(Kind.VECTOR, 3 if known else None)
    data = [None if v is None else ValueProto(float_list_val=FloatList(val=v)).SerializeToString() for v in vectors]
    column = decode(data, view, feature, ["i"] * len(data))
    assert column.flags.writeable
    assert column.flags.c_contiguous
    for row, vector in enumerate(vectors):
        expected = np.full(column.shape[1], np.nan, np.float32) if vector is None else np.float32(vector)
        assert column[row].tobytes() == expected.tobytes()


def test_lengths_that_add_up_by_chance_are_not_taken_for_vectors():
    """One value is four bytes short, the next four too long: together they have the right size."""
    view, feature = view_of(Kind.VECTOR, 3)
    short, long = (ValueProto(float_list_val=FloatList(val=[1.0] * n)).SerializeToString() for n in (2, 4))
    with pytest.raises(LayoutError, match="item_id='a': expected a vector of length 3, found one of length 2"):
        decode([short, long], view, feature, ["a", "b"])
