"""Views that store vectors as bytes: readers get float32, the same offline, online and from Feast's own answers."""

from __future__ import annotations

import uuid
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pytest
from feast.types import Array, Bytes, Float32, Int64

from recsys_llm import schema
from recsys_llm.errors import ConfigError, FingerprintError, RetrievalError, ServiceError, StoreError
from recsys_llm.retrieval import FeatureClient
from recsys_llm.retrieval.columns import Kind
from recsys_llm.storage import VectorStorage
from tests.retrieval.feast_repository import Repository, examples, hours, online_config

DIM = 12
FORMS = {"int8": VectorStorage("int8", DIM, 0.4), "binary": VectorStorage("binary", DIM)}
ROW_ID = (Int64, pa.int64())
BYTES = {"embedding": (Bytes, pa.binary()), "row_id": ROW_ID}
VIEWS = {
    "item_text_embedding_v2": (schema.ITEM, timedelta(0), BYTES),
    "item_text_embedding_v3": (schema.ITEM, timedelta(0), BYTES),
    # Without row ids, so that vectors pass through Feast's join.
    "item_text_embedding_v4": (schema.ITEM, timedelta(0), {"embedding": BYTES["embedding"]}),
    "user_text_embedding_v2": (schema.USER, timedelta(hours=10), BYTES),
    "untagged": (schema.ITEM, timedelta(0), BYTES),
    "mistagged": (schema.ITEM, timedelta(0), BYTES),
    "other_bytes": (schema.ITEM, timedelta(0), {"picture": (Bytes, pa.binary())}),
    "floats": (schema.ITEM, timedelta(0), {"embedding": (Array(Float32), pa.list_(pa.float32())), "row_id": ROW_ID}),
}
STORED = {
    "item_text_embedding_v2": FORMS["int8"],
    "item_text_embedding_v3": FORMS["binary"],
    "item_text_embedding_v4": FORMS["int8"],
    "user_text_embedding_v2": FORMS["int8"],
}
SERVICES = {
    "int8": ("item_text_embedding_v2", "user_text_embedding_v2"),
    "binary": ("item_text_embedding_v3",),
    "joined": ("item_text_embedding_v4", "user_text_embedding_v2"),
    "untagged": ("untagged",),
    "mistagged": ("mistagged",),
    "other_bytes": ("other_bytes",),
    "floats": ("floats",),
}
TAGS = {view: stored.tags for view, stored in STORED.items()} | {
    "mistagged": {schema.VECTOR_TAG: '{"storage": "int8", "dim": 12}'},
    "other_bytes": FORMS["int8"].tags,
    "floats": VectorStorage("float32", DIM).tags,
}
ITEMS = 25
NOW = hours(100)


@pytest.fixture(scope="module", params=["sqlite", "redis", "generic"])
def repository(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(f"compressed_{request.param}")
    url = request.getfixturevalue("redis_url") if request.param == "redis" else None
    online = online_config(request.param, folder, url)
    project = f"c{uuid.uuid4().hex[:8]}"
    made = Repository(folder, online=online, project=project, views=VIEWS, tags=TAGS, services=SERVICES)
    for view, stored in STORED.items():
        rows = rows_of(view, stored)
        made.write(view, rows)
        made.write_online(view, [row for row in rows if row["at"] == hours(5)])
    return made


def rows_of(view, stored):
    """Two versions of each vector; the second one is an hour old at hours(6)."""
    key = schema.JOIN_KEYS[VIEWS[view][0]]
    prefix = "i" if key == schema.ITEM_ID else "u"
    return [
        {key: f"{prefix}{n}", "at": hours(at), "embedding": codes(stored, n, at), "row_id": 1000 * at + n}
        for n in range(ITEMS)
        for at in (1, 5)
    ]


def codes(stored, n, at):
    return stored.encode(vector(n, at)[None, :]).tobytes()


def vector(n, at):
    return np.random.default_rng([n, at]).normal(scale=0.3, size=DIM).astype(np.float32)


def decoded(stored, n, at):
    return stored.decode(np.frombuffer(codes(stored, n, at), np.uint8)[None, :])[0]


@pytest.fixture
def client(repository):
    with FeatureClient(store=repository.store, now=lambda: NOW) as client:
        yield client


def column_of(service):
    return schema.feature_column(SERVICES[service][0], schema.EMBEDDING)


@pytest.mark.parametrize("service", ["int8", "binary", "joined"])
def test_a_lookup_decodes_what_feast_returns(repository, client, service):
    view = SERVICES[service][0]
    ids = [f"i{n}" for n in range(ITEMS)] + ["unknown", "i3"]
    found = client.lookup("u1", ids, service=service).vector(column_of(service))
    assert found.dtype == np.float32
    assert found.shape == (ITEMS + 2, DIM)
    answer = repository.store.get_online_features([f"{view}:embedding"], [{"item_id": item} for item in ids]).to_dict()
    for row, value in enumerate(answer["embedding"]):
        if value is None:
            assert np.isnan(found[row]).all()
        else:
            expected = STORED[view].decode(np.frombuffer(value, np.uint8)[None, :])[0]
            assert found[row].tobytes() == expected.tobytes()
    assert found[:3].tobytes() == np.stack([decoded(STORED[view], n, 5) for n in range(3)]).tobytes()
    assert np.isnan(found[-2]).all() and not np.isnan(found[-1]).any()


@pytest.mark.parametrize("service", ["int8", "binary", "joined"])
def test_a_training_set_holds_what_the_lookup_holds(client, service):
    view = SERVICES[service][0]
    rows = [(f"u{n}", f"i{n}", hours(at)) for n in range(ITEMS) for at in (0.5, 1, 6)]
    train = client.training_set(examples(*rows), service=service)
    found = train.vector(column_of(service)).reshape(ITEMS, 3, DIM)
    assert np.isnan(found[:, 0]).all()
    for n in range(ITEMS):
        assert found[n, 1].tobytes() == decoded(STORED[view], n, 1).tobytes()
    ids = [f"i{n}" for n in range(ITEMS)]
    online = client.lookup("u1", ids, service=service).vector(column_of(service))
    assert found[:, 2].tobytes() == online.tobytes()
    assert train.to_arrow().column(column_of(service)).null_count == ITEMS


def test_cosines_are_those_of_the_decoded_vectors(client):
    batch = client.lookup("u1", ["i0", "i1"], service="int8")
    assert np.isnan(batch.pairwise[:, 0]).all()  # the user's row is past its ttl
    with FeatureClient(store=client.store, now=lambda: hours(6)) as fresh:
        batch = fresh.lookup("u1", ["i0", "i1"], service="int8")
    user, items = decoded(FORMS["int8"], 1, 5), np.stack([decoded(FORMS["int8"], n, 5) for n in (0, 1)])
    expected = items @ user / (np.linalg.norm(items, axis=1) * np.linalg.norm(user))
    np.testing.assert_allclose(batch.pairwise[:, 0], expected, atol=1e-6)
    train = client.training_set(examples(("u1", "i0", hours(6)), ("u1", "i1", hours(6))), service="int8")
    assert train.pairwise[:, 0].tobytes() == batch.pairwise[:, 0].tobytes()


def test_bytes_of_another_length_are_named(repository, client):
    rows = [{"item_id": "short", "at": hours(5), "embedding": b"\x01" * 11, "row_id": 1}]
    repository.write_online("item_text_embedding_v2", rows)
    with pytest.raises(
        StoreError,
        match=r"feature embedding, item_id='short': expected int8 of length 12, scale 0.4 in 12 bytes, found 11 bytes",
    ):
        client.lookup("u1", ["i0", "short"], service="int8")
    repository.write("item_text_embedding_v3", [{**rows[0], "item_id": "long"}], part="part-1")
    try:
        with pytest.raises(RetrievalError, match="expected binary of length 12 in 2 bytes, found 11 bytes"):
            client.training_set(examples(("u1", "long", hours(9))), service="binary")
    finally:
        repository.write("item_text_embedding_v3", [], part="part-1")


def test_a_tag_that_the_parts_contradict_is_refused(repository, client):
    view, other = "item_text_embedding_v2", VectorStorage("int8", DIM, 0.5)
    repository.write(view, [], part="part-0a", fingerprint="f", vector=FORMS["int8"].tags[schema.VECTOR_TAG])
    try:
        client.lookup("u1", ["i0"], service="int8")
        client.refresh()
        repository.write(view, [], part="part-0a", fingerprint="f", vector=other.tags[schema.VECTOR_TAG])
        with pytest.raises(
            FingerprintError, match=r"v2: its tag .* says int8 of length 12, scale 0.4, its parts hold .* scale 0.5"
        ):
            client.lookup("u1", ["i0"], service="int8")
    finally:
        for file in repository.directory(view).glob("part-0a.*"):
            file.unlink()


def test_a_null_vector_is_missing(repository, client):
    repository.write_online(
        "item_text_embedding_v3", [{"item_id": "null", "at": hours(5), "embedding": None, "row_id": 1}]
    )
    found = client.lookup("u1", ["null", "i1"], service="binary").vector(column_of("binary"))
    assert np.isnan(found).all(axis=1).tolist() == [True, False]


@pytest.mark.parametrize(
    ("service", "error", "message"),
    [
        ("untagged", ServiceError, "feature embedding: .* found Bytes.*needs the view's tag 'recsys_llm_vector'"),
        ("other_bytes", ServiceError, "feature picture: .* found Bytes; leave it out of the service"),
        ("mistagged", ConfigError, "view mistagged: tag 'recsys_llm_vector': scale: int8 has one"),
    ],
)
def test_bytes_that_nobody_can_decode_are_refused(client, service, error, message):
    with pytest.raises(error, match=message):
        client.lookup("u1", ["i0"], service=service)


def test_a_tag_on_a_view_of_floats_changes_nothing(client):
    (view,) = client.resolve("floats").views
    assert (view.features[0].kind, view.features[0].storage) == (Kind.VECTOR, None)
