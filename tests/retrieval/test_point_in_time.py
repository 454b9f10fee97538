"""The point-in-time join against its definition, by brute force; and that what comes after an example never matters."""

from __future__ import annotations

import contextlib
from datetime import timedelta

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recsys_llm import schema
from recsys_llm.retrieval import FeatureClient
from tests.retrieval.feast_repository import DIMENSION, EVERYTHING, MOOD, PLAIN, VIEWS, cell, examples, hours
from tests.retrieval.postgres_repository import PostgresRepository

pytestmark = pytest.mark.usefixtures("nothing_stored")

MICROSECOND = timedelta(microseconds=1)
USERS, ITEMS = ["u0", "u1", "u2"], ["i0", "i1", "i2"]
STORED_TIMES = st.integers(0, 14).map(hours)
ASKED_TIMES = st.tuples(st.integers(0, 26), st.sampled_from([-1, 0, 1])).map(lambda p: hours(p[0]) + p[1] * MICROSECOND)
NOT_SHOWN = {schema.ROW_ID}
SERVICES = {PLAIN: (schema.ITEM_STATS, MOOD), EVERYTHING: tuple(VIEWS)}


@st.composite
def stored_rows(draw, view):
    """Draw rows of a view, distinct in (key, time, created); values tell rows apart."""
    key = schema.JOIN_KEYS[VIEWS[view][0]]
    ids = USERS if key == schema.USER_ID else ITEMS
    stamps = draw(
        st.lists(st.tuples(st.sampled_from(ids), STORED_TIMES, st.integers(0, 3)), max_size=10, unique=True), label=view
    )
    rows = []
    for number, (id_, at, late) in enumerate(stamps):
        value = float(number + 1)
        row = {key: id_, "at": at, "created": at + timedelta(days=late), "row_id": -(2**62) + number}
        row |= {"embedding": [value] * DIMENSION, "centroid": [value / 2] * DIMENSION if number % 3 else None}
        row |= {"item_ids": [ITEMS[number % 3], f"x{number}"], "log_probs": [-value, -value - 1], "entropy": value}
        row |= {"n_events": number, "mean_rating": value if number % 2 else None, "category": f"c{number}"}
        row |= {"words": [f"w{number}"] * (number % 3), "counts": [number] if number % 2 else None, "level": value}
        rows.append({name: row[name] for name in [key, "at", "created", *VIEWS[view][2]]})
    return rows


def newest(rows, key, id_, at, ttl):
    """Return the row that an example sees, by the definition: newest, then last created, none if it is too old."""
    known = [row for row in rows if row[key] == id_ and row["at"] <= at and (not ttl or at <= row["at"] + ttl)]
    return max(known, key=lambda row: (row["at"], row["created"]), default=None)


def check_against_oracle(frame, stored, asked):
    for place, (user, item, at) in enumerate(asked):
        for view, rows in stored.items():
            entity, ttl, features = VIEWS[view]
            row = newest(rows, schema.JOIN_KEYS[entity], user if entity == schema.USER else item, at, ttl)
            for feature in features.keys() - NOT_SHOWN:
                found = cell(frame.iloc[place][schema.feature_column(view, feature)])
                value = None if row is None else row[feature]
                if isinstance(value, list):
                    value = np.float32(value).tolist() if value and isinstance(value[0], float) else value
                assert found == (value if isinstance(value, list | str | None) else np.float32(value)), (
                    view,
                    feature,
                    at,
                )


@pytest.fixture(scope="module", params=["parts", "parts through Feast's join", "postgres"])
def offline(request, tmp_path_factory):
    """Return a repository, its client, and whether all of its views are joined by Feast."""
    if request.param != "postgres":
        yield request.getfixturevalue("repository"), request.getfixturevalue("client"), "join" in request.param
        return
    url = request.getfixturevalue("postgres_url")
    with (
        contextlib.closing(PostgresRepository(tmp_path_factory.mktemp("postgres"), url)) as made,
        FeatureClient(store=made.store) as over_postgres,
    ):
        yield made, over_postgres, True


def test_every_example_sees_what_the_definition_says(offline, monkeypatch):
    repository, client, by_feast = offline
    if by_feast:
        monkeypatch.setattr("recsys_llm.retrieval.history.reads", lambda view: False)
    compared = 0

    @settings(max_examples=70 if by_feast else 200, deadline=None, derandomize=True)
    @given(data=st.data())
    def check(data):
        nonlocal compared
        service = data.draw(st.sampled_from([PLAIN, EVERYTHING]))
        stored = {view: data.draw(stored_rows(view)) for view in SERVICES[service]}
        one = st.tuples(st.sampled_from([*USERS, "nobody"]), st.sampled_from(ITEMS), ASKED_TIMES)
        asked = data.draw(st.lists(one, min_size=8, max_size=14))
        for view, rows in stored.items():  # a view's rows lie in two parts, in any order
            repository.write(view, rows[::2])
            repository.write(view, rows[1::2], part="part-1")
        frame = client.training_set(examples(*asked), service=service).to_pandas()
        assert len(frame) == len(asked)
        check_against_oracle(frame, stored, asked)
        compared += len(asked)

    check()
    assert compared >= 500


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(data=st.data())
def test_rows_stamped_after_an_example_never_matter(data, repository, client):
    stored = {view: data.draw(stored_rows(view)) for view in VIEWS}
    at = data.draw(ASKED_TIMES)
    asked = examples(*[(user, item, at) for user in USERS for item in ITEMS])
    for view, rows in stored.items():
        repository.write(view, rows)
    before = client.training_set(asked, service=EVERYTHING)
    for view, rows in stored.items():
        repository.write(view, [row for row in rows if row["at"] <= at])
    after = client.training_set(asked, service=EVERYTHING)
    pd.testing.assert_frame_equal(before.to_pandas(), after.to_pandas())
