"""One suite over every online store: the same answers as Feast, the same statuses, the same refusals."""

from __future__ import annotations

import asyncio
import threading
import uuid

import numpy as np
import pytest

from recsys_llm import schema
from recsys_llm.errors import RowError, SchemaError, ServiceError, StoreError
from recsys_llm.retrieval import FeatureClient, Status
from tests.retrieval.feast_repository import (
    EVERYTHING,
    MOOD,
    PLAIN,
    Repository,
    hours,
    online_config,
)
from tests.retrieval.online_rows import ITEMS, NOW, fill_online

EMBEDDING_COLUMN = schema.feature_column(schema.ITEM_TEXT_EMBEDDING, schema.EMBEDDING)


@pytest.fixture(scope="module", params=["sqlite", "redis", "guarded", "generic", "postgres"])
def repository(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    server = {"redis": "redis_url", "guarded": "redis_url", "postgres": "postgres_url"}.get(request.param)
    url = None if server is None else request.getfixturevalue(server)
    repository = Repository(
        folder, online=online_config(request.param, folder, url), project=f"p{uuid.uuid4().hex[:8]}"
    )
    fill_online(repository)
    yield repository
    if request.param == "postgres":
        repository.store.provider.online_store._conn.close()  # which Feast leaves to the garbage collector


@pytest.fixture
def client(repository):
    with FeatureClient(store=repository.store, now=lambda: NOW) as client:
        yield client


def feast_answers(repository, user, items):
    rows = [{"user_id": user, "item_id": item} for item in items]
    service = repository.store.get_feature_service(EVERYTHING)
    return repository.store.get_online_features(service, rows, full_feature_names=True).to_dict()


def same(ours, feasts):
    """Compare one value with Feast's, to the bit."""
    if feasts is None:
        return ours is None or (not isinstance(ours, list) and np.isnan(ours).all())
    if isinstance(ours, (str, list)):
        expected = np.float32(feasts).tolist() if feasts and isinstance(feasts[0], float) else feasts
        return ours == expected
    return np.float32(ours).tobytes() == np.float32(feasts).tobytes() or (
        np.isnan(ours).all() and np.isnan(np.float32(feasts)).all()
    )


def test_answers_are_those_of_get_online_features(repository, client):
    items = [f"i{n}" for n in range(ITEMS)] + ["", "ключ", "\U0001f600", "a\x00b", "unknown", "i3"]
    batch = client.lookup("u1", items, service=EVERYTHING)
    expected = feast_answers(repository, "u1", items)
    compared = 0
    for column in batch.columns:
        values = batch.column(column)
        values = values if isinstance(values, np.ndarray) else values.to_pylist()
        for place, item in enumerate(items):
            assert same(values[place], expected[column][place]), (column, item, values[place], expected[column][place])
            compared += expected[column][place] is not None
    assert compared > 200
    assert set(batch.columns) == {name for name in expected if "__" in name and not name.endswith(schema.ROW_ID)}


def test_statuses(client):
    batch = client.lookup("u1", ["i0", "i25", "unknown"], service=EVERYTHING)
    assert batch.status(schema.ITEM_TEXT_EMBEDDING).tolist() == [Status.PRESENT, Status.PRESENT, Status.MISSING]
    assert batch.status(schema.ITEM_STATS).tolist() == [Status.PRESENT, Status.MISSING, Status.MISSING]
    assert batch.status(schema.USER_NEXT_ITEMS).tolist() == [Status.PRESENT] * 3
    with pytest.raises(ServiceError, match="no view 'item_stat'; did you mean 'item_stats'"):
        batch.status("item_stat")


def test_a_row_at_the_edge_of_its_ttl_is_there_and_an_older_one_is_blanked(repository, client):
    column = schema.feature_column(MOOD, "level")
    edge = client.lookup("u1", ["i0"], service=EVERYTHING)
    assert edge.status(MOOD)[0] == Status.PRESENT
    assert edge.scalar(column)[0] == np.float32(0.3)
    stale = client.lookup("stale", ["i0"], service=EVERYTHING)
    assert stale.status(MOOD)[0] == Status.STALE
    assert np.isnan(stale.scalar(column)[0])
    assert feast_answers(repository, "stale", ["i0"])[column] == [0.4]  # Feast itself doesn't look at the ttl


def test_a_user_nobody_knows(client):
    batch = client.lookup("nobody", ["i0", "i1"], service=EVERYTHING)
    assert batch.status(schema.USER_NEXT_ITEMS).tolist() == [Status.MISSING] * 2
    assert np.isnan(batch.pairwise).all()
    assert batch.vector(schema.feature_column(schema.USER_TEXT_EMBEDDING, schema.EMBEDDING)).shape[0] == 2


def test_no_candidates(client):
    batch = client.lookup("u1", [], service=EVERYTHING)
    assert len(batch) == 0
    assert batch.pairwise.shape == (0, 5)
    assert batch.to_pandas().empty
    assert client.lookup("u1", np.array([], dtype=object), service=PLAIN).scalar("item_stats__n_events").shape == (0,)


def test_repeated_candidates_are_read_once_and_given_in_order(client):
    batch = client.lookup("u1", ["i2", "i0", "i2"], service=EVERYTHING)
    assert batch.item.ids == ("i2", "i0")
    vectors = batch.vector(EMBEDDING_COLUMN)
    assert vectors.flags.c_contiguous
    assert vectors.dtype == np.float32
    assert (vectors[0] == vectors[2]).all()
    assert (vectors[0] != vectors[1]).any()


def test_many_candidates(client):
    candidates = [f"i{n}" for n in range(12_000)]
    batch = client.lookup("u1", candidates, service=PLAIN)
    assert (batch.status(schema.ITEM_STATS) == Status.PRESENT).sum() == 20


@pytest.mark.parametrize(
    ("user", "candidates", "error", "message"),
    [
        ("u1", ["i0", 5], RowError, r"candidate_ids\[1\]: expected a str, found int 5; use '5'"),
        ("u1", ["i0", None], RowError, r"candidate_ids\[1\]: expected a str, found null"),
        ("u1", ["i0", float("nan")], RowError, r"candidate_ids\[1\]: expected a str, found null"),
        ("u1", ["\ud800"], RowError, r"candidate_ids\[0\]: expected text, found a lone surrogate"),
        ("u1", "i0", SchemaError, "candidate_ids: expected a sequence of str, found str 'i0'; put it in a list"),
        (None, ["i0"], RowError, "user_id: expected a str, found null"),
        (7, ["i0"], RowError, "user_id: expected a str, found int 7; use '7'"),
    ],
)
def test_ids_that_are_none(client, user, candidates, error, message):
    with pytest.raises(error, match=message):
        client.lookup(user, candidates, service=EVERYTHING)


def test_unknown_service(client):
    with pytest.raises(ServiceError, match="'everythin' is not in project .*did you mean 'everything'"):
        client.lookup("u1", ["i0"], service="everythin")


def test_async_lookup_is_the_same(client):
    batch = asyncio.run(client.lookup_async("u1", ["i0", "i1"], service=EVERYTHING))
    expected = client.lookup("u1", ["i0", "i1"], service=EVERYTHING)
    assert batch.pairwise.tobytes() == expected.pairwise.tobytes()


def test_several_users_at_once_are_each_as_alone(repository, client):
    asked = [
        ("u1", ["i0", "i1", "i3"]),
        ("nobody", []),
        ("stale", ["i1", "unknown", "i1"]),
        ("u1", [f"i{n}" for n in range(ITEMS)]),
    ]
    batches = client.lookup_many(asked, service=EVERYTHING)
    assert len(batches) == 4
    assert len({id(batch.item) for batch in batches}) == 1  # shared candidates are read and kept once
    assert batches[0].item.ids[:4] == ("i0", "i1", "i3", "unknown")
    for (user, candidates), batch in zip(asked, batches, strict=True):
        alone = client.lookup(user, candidates, service=EVERYTHING)
        assert batch.pairwise.tobytes() == alone.pairwise.tobytes()
        for column in alone.columns:
            assert batch.to_pylist(column) == alone.to_pylist(column)
            one, other = batch.column(column), alone.column(column)
            assert one.tobytes() == other.tobytes() if isinstance(one, np.ndarray) else one.equals(other)
        for view in [*alone.user.status, *alone.item.status]:
            assert batch.status(view).tolist() == alone.status(view).tolist()
    assert client.lookup_many([], service=EVERYTHING) == []


@pytest.mark.parametrize(
    ("requests", "segments", "error", "message"),
    [
        ([("u1", ["i0"]), ("u1", ["i0", None])], None, RowError, r"requests\[1\]: candidate_ids\[1\]: .* found null"),
        ([("u1", ["i0"]), (None, ["i0"])], None, RowError, r"requests\[1\]: user_id: expected a str, found null"),
        ([("u1", ["i0"]), "u1"], None, SchemaError, r"requests\[1\]: expected \(user_id, candidate_ids\), found 'u1'"),
        ([("u1", "i0")], None, SchemaError, r"requests\[0\]: candidate_ids: expected a sequence of str"),
        ([("u1", ["i0"])], [], SchemaError, "segments: expected one for each of 1 requests, found 0"),
        ([("u1", ["i0"])], [3], RowError, r"requests\[0\]: segment: expected a str, found int 3"),
    ],
)
def test_several_requests_of_which_one_is_none(client, requests, segments, error, message):
    with pytest.raises(error, match=message):
        client.lookup_many(requests, service=EVERYTHING, segments=segments)


def test_several_threads(client):
    expected = client.lookup("u1", ["i0", "i1"], service=EVERYTHING).vector(EMBEDDING_COLUMN).tobytes()
    found = []

    def read():
        for _ in range(5):
            found.append(client.lookup("u1", ["i0", "i1"], service=EVERYTHING).vector(EMBEDDING_COLUMN).tobytes())

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 20


def test_a_vector_of_another_length_is_named(repository, client):
    rows = [{"item_id": "long", "at": hours(1), "embedding": [1.0] * 5, "row_id": 9}]
    repository.write_online(schema.ITEM_TEXT_EMBEDDING, rows)
    with pytest.raises(
        StoreError, match="view item_text_embedding_v1, feature embedding, item_id='long': .*one of length 5 where"
    ):
        client.lookup("u1", ["i0", "long"], service=EVERYTHING)


def test_null_vectors_and_lists(repository, client):
    nothing = {"item_ids": None, "log_probs": None, "entropy": None, "centroid": None, "row_id": 4}
    repository.write_online(schema.USER_NEXT_ITEMS, [{"user_id": "null", "at": hours(1), **nothing}])
    batch = client.lookup("null", ["i0"], service=EVERYTHING)
    assert batch.status(schema.USER_NEXT_ITEMS)[0] == Status.PRESENT
    assert np.isnan(batch.vector("user_next_items_v1__centroid")).all()
    assert np.isnan(batch.pairwise[:, [1, 4]]).all()
