"""Which views are joined here, which by Feast, and what the join itself does at its edges."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_llm import schema
from recsys_llm.retrieval.as_of import _newest, columns_as_of, reads
from tests.retrieval.feast_repository import EVERYTHING, MOOD, NOTES, T0, hours
from tests.retrieval.history_rows import fill

pytestmark = pytest.mark.usefixtures("nothing_stored")


def view_of(client, name):
    return next(view for view in client.resolve(EVERYTHING).views if view.name == name)


def test_which_views_are_read_here(client):
    joined = {view.name for view in client.resolve(EVERYTHING).views if reads(view)}
    assert joined == {view.name for view in client.resolve(EVERYTHING).views} - {NOTES}  # its lists have no row ids
    assert not reads(replace(view_of(client, MOOD), parts=None))


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table.set_column(2, "event_timestamp", table[2].cast(pa.timestamp("ns", "UTC"))),
        lambda table: table.set_column(0, "user_id", table["user_id"].dictionary_encode()),
        lambda table: table.drop_columns(["level"]),
    ],
    ids=["nanoseconds", "a dictionary as key", "a feature is missing"],
)
def test_parts_of_another_form_are_left_to_feast(repository, client, change, tmp_path):
    (part,) = repository.directory(MOOD).glob("*.parquet")
    table = pq.read_table(part)
    assert table.column_names[:3] == ["user_id", "level", "event_timestamp"]
    pq.write_table(change(table), tmp_path / "part.parquet")
    view = view_of(client, MOOD)
    assert reads(view)
    assert not reads(replace(view, parts=str(tmp_path)))


@pytest.mark.parametrize("asked", [[], [("u0", -1)], [("nobody", 5)]])
def test_nothing_is_seen(repository, client, asked):
    fill(repository)
    ids = np.array([id_ for id_, _ in asked], dtype=object)
    micros = np.array([int(hours(at).timestamp() * 1e6) for _, at in asked], dtype=np.int64)
    found = columns_as_of(view_of(client, MOOD), ["level"], ids, micros)
    assert found[schema.feature_column(MOOD, "level")].to_pylist() == [None] * len(asked)


def test_the_ttl_counts_to_the_microsecond(repository, client):
    fill(repository)  # u0 at one o'clock; ten hours of ttl
    edge = int(T0.timestamp() * 1e6) + 11 * 3_600_000_000
    found = columns_as_of(
        view_of(client, MOOD), ["level"], np.array(["u0", "u0"], dtype=object), np.array([edge, edge + 1])
    )
    assert found["user_mood__level"].to_pylist() == [0.5, None]


@given(st.data())
def test_bisection_is_the_definition(data):
    stored = sorted(data.draw(st.lists(st.tuples(st.integers(0, 4), st.integers(-50, 50)), max_size=30)))
    asked = data.draw(st.lists(st.tuples(st.integers(0, 5), st.integers(-60, 60)), max_size=30))
    keys, stamps = (np.array(values, dtype=np.int64) for values in (list(zip(*stored, strict=True)) or ([], [])))
    codes, micros = (np.array(values, dtype=np.int64) for values in (list(zip(*asked, strict=True)) or ([], [])))
    expected = [
        max((row for row, (key, at) in enumerate(stored) if key == code and at <= time), default=-1)
        for code, time in asked
    ]
    assert _newest(keys, stamps, codes, micros).tolist() == expected
