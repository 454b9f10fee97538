"""Users without a row of their own: segment, then everyone; the same online and in training sets, by brute force."""

from __future__ import annotations

from datetime import timedelta
from unittest import mock

import numpy as np
import pytest
from feast.types import Array, Float32, Int64, String
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recsys_llm import schema
from recsys_llm.errors import RowError, SchemaError
from recsys_llm.retrieval import FeatureClient
from recsys_llm.retrieval.blocks import Status
from tests.retrieval import feast_repository
from tests.retrieval.feast_repository import (
    DIMENSION,
    EVERYTHING,
    FLOATS,
    PLAIN,
    VIEWS,
    Repository,
    cell,
    examples,
    hours,
    online_config,
)
from tests.retrieval.feast_repository import pa as arrow

VIEW = schema.USER_TEXT_EMBEDDING
TTL = timedelta(hours=10)
FEATURES = {
    "embedding": (Array(Float32), FLOATS),
    "provenance": (String, arrow.string()),
    "row_id": (Int64, arrow.int64()),
}
PROVENANCE, EMBEDDING = f"{VIEW}__provenance", f"{VIEW}__embedding"
KEYS = ["u1", "segment:DE", "segment:FR", "global"]


@pytest.fixture(scope="module", autouse=True)
def with_provenance():
    with mock.patch.dict(feast_repository.VIEWS, {VIEW: (schema.USER, TTL, FEATURES)}):
        yield


@pytest.fixture(scope="module")
def repository(with_provenance, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cold")
    return Repository(folder, online=online_config("sqlite", folder))


@pytest.fixture
def client(repository):
    with FeatureClient(store=repository.store) as client:
        yield client


def row(key, hour, number=1):
    provenance = {"s": "segment", "g": "global"}.get(key[0], "history")
    embedding = [float(number)] * DIMENSION
    return {"user_id": key, "at": hours(hour), "embedding": embedding, "provenance": provenance, "row_id": number}


def reader(repository, now):
    return FeatureClient(store=repository.store, now=lambda: now)


@pytest.mark.parametrize("kind", ["sqlite", "redis", "generic"])
def test_lookup_takes_the_user_then_the_segment_then_everyone(kind, request, tmp_path):
    url = request.getfixturevalue("redis_url") if kind == "redis" else None
    repository = Repository(tmp_path, online=online_config(kind, tmp_path, url), project=f"cold_{kind}")
    with reader(repository, hours(9)) as client:
        first = client.lookup("nobody", ["i"], service=EVERYTHING, segment="DE")
        assert first.column(PROVENANCE).to_pylist() == [None]
        assert first.status(VIEW).tolist() == [Status.MISSING]
    repository.write_online(VIEW, [row("u1", 1, 1), row("segment:DE", 2, 2), row("global", 3, 3)])
    cases = [
        ("u1", "DE", "history", 1, Status.PRESENT),
        ("nobody", "DE", "segment", 2, Status.FALLBACK),
        ("nobody", "FR", "global", 3, Status.FALLBACK),
        ("nobody", "", "global", 3, Status.FALLBACK),
        ("nobody", None, "global", 3, Status.FALLBACK),
    ]
    with reader(repository, hours(9)) as client:
        together = client.lookup_many(
            [(user, ["i", "j"]) for user, *_ in cases],
            service=EVERYTHING,
            segments=[segment for _, segment, *_ in cases],
        )
        for (user, segment, provenance, number, status), one in zip(cases, together, strict=True):
            batch = client.lookup(user, ["i", "j"], service=EVERYTHING, segment=segment)
            assert one.column(PROVENANCE).to_pylist() == [provenance] * 2
            assert one.vector(EMBEDDING).tolist() == [[number] * DIMENSION] * 2
            assert one.status(VIEW).tolist() == [status] * 2
            assert batch.column(PROVENANCE).to_pylist() == [provenance] * 2
            assert batch.vector(EMBEDDING).tolist() == [[number] * DIMENSION] * 2
            assert batch.status(VIEW).tolist() == [status] * 2
            assert batch.user.timestamps[VIEW].tolist() == [number * 3_600_000_000 + 1_704_067_200_000_000]
        assert batch.columns == first.columns


def test_only_a_missing_row_costs_another_read(repository):
    repository.write_online(VIEW, [row("u1", 1), row("global", 1)])
    with reader(repository, hours(2)) as client:
        online = client._online()
        with mock.patch.object(online, "read", wraps=online.read) as read:
            client.lookup("u1", ["i"], service=EVERYTHING, segment="DE")
            assert read.call_count == 1
            client.lookup("nobody", ["i"], service=EVERYTHING, segment="DE")
            assert read.call_count == 3
            assert read.call_args.args[0][0].ids == ("segment:DE", "global")
            client.lookup("nobody", ["i"], service=PLAIN, segment="DE")
            assert read.call_count == 4


def oracle(rows, user, segment, at):
    """Return the row that an example sees, by the definition."""
    for key in (user, f"segment:{segment}" if segment else None, "global"):
        known = [row for row in rows if row["user_id"] == key and row["at"] <= at <= row["at"] + TTL]
        if known:
            return max(known, key=lambda row: row["at"])
    return None


stored = st.lists(st.tuples(st.sampled_from(KEYS), st.integers(0, 30)), max_size=16, unique=True)
segments = st.sampled_from(["DE", "FR", "XX", "", None])


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(
    stored,
    st.lists(st.tuples(st.sampled_from(["u1", "u2"]), st.integers(0, 45), segments), min_size=1, max_size=25),
    st.booleans(),
)
def test_training_sets_follow_the_same_rule(repository, client, stored, asked, with_segments):
    rows = [row(key, hour, number) for number, (key, hour) in enumerate(stored, 1)]
    repository.write(VIEW, rows)
    frame = examples(*[(user, "i1", hours(hour)) for user, hour, _ in asked], index=range(5, 5 + len(asked)))
    if with_segments:
        frame["segment"] = [segment for *_, segment in asked]
    found = client.training_set(frame, service=EVERYTHING)
    table = found.to_pandas()
    assert table.index.equals(frame.index)
    for place, (user, hour, segment) in enumerate(asked):
        expected = oracle(rows, user, segment if with_segments else None, hours(hour))
        assert cell(table.iloc[place][PROVENANCE]) == (expected and expected["provenance"])
        assert cell(table.iloc[place][EMBEDDING]) == (expected and expected["embedding"])
        status = Status.MISSING if expected is None else Status.PRESENT
        own = expected is None or expected["user_id"] == user
        assert found.status(VIEW)[place] == (status if own else Status.FALLBACK)


def test_serving_and_training_agree_at_every_moment(tmp_path):
    repository = Repository(tmp_path, online=online_config("sqlite", tmp_path))
    rng = np.random.default_rng(3)
    keys = rng.choice(["u1", "u2", *KEYS[1:]], 40).tolist()
    rows = [row(key, 1.5 * place, place + 1) for place, key in enumerate(keys)]
    repository.write(VIEW, rows)
    moments = [hours(hour) for hour in range(0, 75, 3)]
    asked = [(user, segment) for user in ("u1", "u2", "u3") for segment in ("DE", "FR", None)]
    frame = examples(*[(user, "i1", now) for now in moments for user, _ in asked])
    frame["segment"] = [segment for _ in moments for _, segment in asked]
    with reader(repository, moments[-1]) as client:
        train = client.training_set(frame, service=EVERYTHING)
        plain = frame[frame["segment"].isna()]
        past = client.entity_history("user", plain["user_id"], plain["event_timestamp"], service=EVERYTHING)
    np.testing.assert_array_equal(past.columns[EMBEDDING], train.vector(EMBEDDING)[plain.index])
    provenance, place = train.column(PROVENANCE).to_pylist(), 0
    for now in moments:
        repository.write_online(VIEW, [row for row in rows if row["at"] <= now])
        with reader(repository, now) as client:
            for user, segment in asked:
                serve = client.lookup(user, ["i1"], service=EVERYTHING, segment=segment)
                assert serve.column(PROVENANCE).to_pylist() == [provenance[place]]
                np.testing.assert_array_equal(serve.vector(EMBEDDING)[0], train.vector(EMBEDDING)[place])
                place += 1
    assert set(provenance) == {"history", "segment", "global", None}


def test_a_user_under_two_segments_at_one_moment(repository, client):
    repository.write(VIEW, [row("segment:DE", 1, 1), row("segment:FR", 1, 2), row("u1", 1, 3)])
    asked = [("u2", "DE"), ("u1", "DE"), ("u2", "FR"), ("u2", None), ("u1", "FR"), ("u2", "DE")]
    frame = examples(*[(user, "i1", hours(2)) for user, _ in asked], segment=[segment for _, segment in asked])
    train = client.training_set(frame, service=EVERYTHING)
    assert [cell(vector)[0] if not np.isnan(vector).any() else None for vector in train.vector(EMBEDDING)] == [
        1, 3, 2, None, 3, 1,
    ]  # fmt: skip


def test_segments_must_be_text(repository, client):
    frame = examples(("u1", "i1", hours(1)), ("u1", "i1", hours(2)), segment=["DE", 49])
    with pytest.raises(SchemaError, match=r"column 'segment', row 1: expected str or null, found int 49"):
        client.training_set(frame, service=EVERYTHING)
    assert len(client.training_set(frame, service=PLAIN)) == 2  # another column of that name is nobody's business
    with pytest.raises(RowError, match="segment: expected a str, found int 49"):
        client.lookup("u1", ["i1"], service=EVERYTHING, segment=49)


def test_views_say_whether_they_have_rows_for_cold_users(client):
    assert [view.name for view in client.resolve(EVERYTHING).views if view.has_cold_rows] == [VIEW]
    assert set(VIEWS) > {VIEW}
