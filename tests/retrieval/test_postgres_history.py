"""A Postgres offline store: lists pass through Feast's join, and the training set is the same as from parquet parts."""

from __future__ import annotations

import contextlib

import numpy as np
import pandas as pd
import pytest

from recsys_llm import schema
from recsys_llm.retrieval import FeatureClient, Status
from tests.retrieval.feast_repository import DIMENSION, EVERYTHING, NOTES, PLAIN, examples, hours
from tests.retrieval.history_rows import ITEMS, USERS, fill
from tests.retrieval.postgres_repository import PostgresRepository


class OverPostgres:
    """What ``fill`` writes to; parts have no manifest there."""

    def __init__(self, repository):
        self._repository = repository

    def write(self, view, rows, **_):
        self._repository.write(view, rows)


@pytest.fixture(scope="module")
def postgres(tmp_path_factory, postgres_url):
    with contextlib.closing(PostgresRepository(tmp_path_factory.mktemp("postgres"), postgres_url)) as repository:
        fill(OverPostgres(repository))
        repository.write(NOTES, [{"item_id": "i0", "at": hours(0), "words": ["a", "b"], "counts": [2**40]}])
        yield repository


@pytest.fixture
def over_postgres(postgres):
    with FeatureClient(store=postgres.store) as client:
        yield client


def test_the_same_training_set_as_from_parts(repository, client, nothing_stored, over_postgres):
    fill(repository)
    repository.write(NOTES, [{"item_id": "i0", "at": hours(0), "words": ["a", "b"], "counts": [2**40]}])
    rng = np.random.default_rng(1)
    rows = [(USERS[rng.integers(3)], ITEMS[rng.integers(3)], hours(int(rng.integers(-1, 8)))) for _ in range(30)]
    asked = examples(*rows, *rows[:2], label=rng.integers(0, 2, 32))
    expected = client.training_set(asked, service=EVERYTHING)
    found = over_postgres.training_set(asked, service=EVERYTHING)
    pd.testing.assert_frame_equal(found.to_pandas(), expected.to_pandas())
    assert found.to_arrow().equals(expected.to_arrow())
    assert found.pairwise.tobytes() == expected.pairwise.tobytes()
    assert found.status(schema.USER_NEXT_ITEMS).tolist() == expected.status(schema.USER_NEXT_ITEMS).tolist()
    assert Status.PRESENT in found.status(schema.ITEM_TEXT_EMBEDDING)
    for ours, others in zip(found.loader(7), expected.loader(7), strict=True):
        for name in ours:
            np.testing.assert_array_equal(ours[name].numpy(), others[name].numpy())


def test_nothing_known_and_nothing_asked(over_postgres):
    training = over_postgres.training_set(examples(("nobody", "i9", hours(5))), service=EVERYTHING)
    assert np.isnan(training.vector("item_text_embedding_v1__embedding")).all()
    assert training.column("item_notes__words").to_pylist() == [None]
    assert training.status(NOTES).tolist() == [Status.MISSING]
    assert len(over_postgres.training_set(examples(), service=PLAIN)) == 0


def test_where_fingerprints_are_not_known(over_postgres):
    training = over_postgres.training_set(examples(("u0", "i1", hours(5))), service=EVERYTHING)
    assert set(training.fingerprints.values()) == {None}
    assert training.vector("item_text_embedding_v1__embedding").shape == (1, DIMENSION)
