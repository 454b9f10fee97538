"""Views that are not computed: the same rows online as with Feast's local engine."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import Entity, FeatureView, Field, FileSource, ValueType
from feast.data_format import ParquetFormat
from feast.infra.common.materialization_job import MaterializationTask
from feast.types import Array, Float32, String

from recsys_llm import schema
from recsys_llm.engine.copying import Newest, is_copied
from recsys_llm.engine.engine import FeatureComputeEngine
from recsys_llm.timestamps import now
from tests.engine.online_places import ALL, PAIR, columns_of, pair, table
from tests.retrieval.feast_repository import T0, hours

OURS = {"batch_engine": {"type": "recsys_llm.engine.FeatureComputeEngine"}}
STOCK = {"batch_engine": {"type": "local"}}
START, END = hours(0), hours(50)
LIST = pa.list_(pa.float32())


def write(place, rows, view=PAIR):
    for old in place.repository.directory(view).glob("*.parquet"):
        old.unlink()
    number = next(place.repository.numbers)
    for part, half in enumerate((rows.slice(0, len(rows) // 2), rows.slice(len(rows) // 2))):
        pq.write_table(half, place.repository.directory(view) / f"{number}-{part}.parquet")


def history(rows):
    """Return rows of all types: several of each key, in no order, some before and after the interval, some tied."""
    rng = np.random.default_rng(0)
    times = [T0 + timedelta(minutes=int(minutes), microseconds=7) for minutes in rng.integers(-300, 3600, rows)]
    times[:6] = [START, END, START, END, hours(3), hours(3)]
    ids = [f"i{number}" for number in rng.integers(0, rows // 3, rows)]
    ids[:6] = ["start", "end", "start", "end", "tied", "tied"]
    return table(columns_of(rows), times, ids)


@pytest.mark.parametrize("latest", [False, True])
def test_the_same_bytes_as_feasts_local_engine(places, kind, latest, capsys):
    found = []
    rows = history(200)
    for settings in (OURS, STOCK):
        place = places(kind, {**settings, "materialization": {"pull_latest_features": latest}})
        write(place, rows, ALL)
        place.store.materialize(START, END, feature_views=[ALL])
        found.append(place.dump(ALL))
    assert found[0] == found[1]
    assert len(found[0]) > 40
    assert "all_types: " in capsys.readouterr().out


def test_a_newer_row_stays_and_is_counted(places, kind, capsys):
    place = places(kind, OURS)
    write(place, pair(1, hours(5), ids=("i0", "i1")))
    place.publish(pair(2, hours(6)))
    place.store.materialize(START, END, feature_views=[PAIR])
    assert place.read(["i0", "i1"])["number"] == [2, 1]
    assert (
        "pair: 1 rows copied online\npair: 1 rows left out, since the online store holds newer"
        in capsys.readouterr().out
    )


def test_nothing_in_the_interval(places, capsys):
    place = places("sqlite", OURS)
    write(place, pair(1, hours(5)))
    place.store.materialize(hours(6), END, feature_views=[PAIR])
    assert place.read()["number"] == [None]
    assert "pair: 0 rows copied online" in capsys.readouterr().out


def test_a_failure_leaves_the_watermark_alone(places):
    place = places("sqlite", OURS)
    rows = pair(1, hours(5), ids=("i0", "i1"))
    keys = pa.array(["i0", None], pa.string())
    write(place, rows.set_column(0, schema.ITEM_ID, keys))
    with pytest.raises(Exception, match="view pair, column 'item_id', row 1: null"):
        place.store.materialize(START, END, feature_views=[PAIR])
    assert place.store.get_feature_view(PAIR).materialization_intervals == []


def with_vectors(place, **changes):
    """Declare the vector of the pair as one."""
    view = place.store.get_feature_view(PAIR)
    vector = Field(name="vector", dtype=Array(Float32), vector_index=True, vector_search_metric="cosine", **changes)
    view.features = [vector if field.name == "vector" else field for field in view.features]
    place.store.apply(view)


@pytest.mark.faults
@pytest.mark.parametrize("declared", [3, 0])
@pytest.mark.parametrize(
    ("vector", "problem"),
    [
        ([1.0, float("nan"), 1.0], "is not finite"),
        ([1.0, 1.0, float("-inf")], "is not finite"),
        ([1.0, 1.0], "has length 2, expected 3"),
        ([1.0] * 4, "has length 4, expected 3"),
    ],
)
def test_a_broken_vector_is_refused_and_its_row_named(places, kind, vector, problem, declared):
    place = places(kind, OURS)
    with_vectors(place, **({"vector_length": declared} if declared else {}))
    rows = pair(1, hours(5), ids=[f"i{number}" for number in range(40)])
    values = rows.column("vector").to_pylist()
    values[33] = vector
    write(place, rows.set_column(rows.schema.get_field_index("vector"), "vector", pa.array(values, LIST)))
    with pytest.raises(Exception, match=f"view pair: vector {problem}.* in the row of item_id 'i33' at 2"):
        place.store.materialize(START, END, feature_views=[PAIR])
    assert place.store.get_feature_view(PAIR).materialization_intervals == []
    write(place, rows)
    place.store.materialize(START, END, feature_views=[PAIR])
    assert place.read(["i33"])["vector"] == [[1.0] * 3]


@pytest.mark.faults
def test_no_row_from_the_future(places, kind):
    place = places(kind, OURS)
    write(place, pair(1, now() + timedelta(days=1)))
    place.store.materialize(START, now(), feature_views=[PAIR])
    assert place.read()["number"] == [None]
    with pytest.raises(Exception, match="lies in the future.*; materialise up to now"):
        place.store.materialize(START, now() + timedelta(days=2), feature_views=[PAIR])
    assert place.read()["number"] == [None]


def places(rows, keys, stamps, pieces=1):
    """Return the places of the newest rows, read in so many batches."""
    batches = rows.combine_chunks().to_batches(max_chunksize=max(1, -(-len(rows) // pieces)))
    newest = Newest(keys, stamps, iter(batches))
    starts = np.cumsum([0, *(len(batch) for batch in batches)])
    return [int(start + place) for start, batch in zip(starts, batches, strict=False) for place in newest.places(batch)]


@pytest.mark.parametrize("pieces", [1, 2, 5])
def test_newest_rows(pieces):
    def times(values):
        return pa.array(values, pa.timestamp("us", "UTC"))

    rows = pa.table(
        {
            "a": ["x", "y", "x", "x", "y"],
            "b": [1, 1, 1, 2, 1],
            "t": times([3, 5, 2, 1, 4]),
            "c": times([2, 0, 2, 0, None]),
        }
    )
    assert places(rows, ["a", "b"], ["t", "c"], pieces) == [0, 1, 3]
    assert places(rows, ["a"], ["t"], pieces) == [0, 1]
    assert places(rows.slice(0, 0), ["a"], ["t"], pieces) == []
    ties = pa.table({"a": ["x", "x"], "t": times([3, 3]), "c": times([1, None])})
    assert places(ties, ["a"], ["t", "c"], pieces) == [0]  # a known creation time is later than none
    same = pa.table({"a": ["x", "x"], "t": times([3, 3])})
    assert places(same, ["a"], ["t"]) == [1]


def test_texts_and_dates_are_times_too():
    rows = pa.table({"a": ["x", "x"], "t": ["2024-01-02", "2024-01-01"], "d": pa.array([1, 2], pa.date32())})
    assert places(rows, ["a"], ["t"]) == [0]
    assert places(rows, ["a"], ["d"]) == [1]


def plain_view(**changes):
    item = Entity(name="item", join_keys=["item_id"], value_type=ValueType.STRING)
    mapping = changes.pop("field_mapping", None)
    source = FileSource(path="x", file_format=ParquetFormat(), timestamp_field="t", field_mapping=mapping)
    fields = [Field(name="item_id", dtype=String), Field(name="f", dtype=Float32)]
    return FeatureView(**({"name": "v", "entities": [item], "schema": fields, "source": source} | changes))


@pytest.mark.parametrize(
    ("changes", "copied"),
    [
        ({}, True),
        ({"offline": True}, False),
        ({"online": False}, False),
        ({"entities": []}, False),
        ({"field_mapping": {"a": "f"}}, False),
        ({"enable_validation": True}, False),
    ],
    ids=str,
)
def test_what_is_more_than_a_copy_is_left_to_feast(changes, copied):
    def task(**more):
        return MaterializationTask("p", plain_view(**changes), START, END, **more)

    assert is_copied(task()) is copied
    assert not is_copied(task(only_latest=False))
    assert not is_copied(task(disable_event_timestamp=True))


def test_a_view_that_is_left_to_feast_is_written(places, monkeypatch):
    monkeypatch.setattr("recsys_llm.engine.engine.is_copied", lambda task: False)
    place = places("sqlite", OURS)
    assert isinstance(place.store.provider.batch_engine, FeatureComputeEngine)
    write(place, pair(1, hours(5)))
    place.store.materialize(START, END, feature_views=[PAIR])
    assert place.read()["number"] == [1]
