"""Pairwise features: known values, what is missing, and the same bits however pairs are batched."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_llm.errors import ServiceError
from recsys_llm.retrieval import PAIRWISE, EntityBlock, FeatureBatch
from recsys_llm.retrieval.blocks import Status
from recsys_llm.retrieval.columns import Columns, Stored

NAN = math.nan
USER_TEXT, ITEM_TEXT = "user_text_embedding_v1__embedding", "item_text_embedding_v1__embedding"
QUERY, VECTOR = "user_next_items_v1__next_query", "item_next_vectors_v1__next_vector"
NEXT, PROBS, CENTROID = "user_next_items_v1__item_ids", "user_next_items_v1__log_probs", "user_next_items_v1__centroid"


def float32(rows):
    return np.array(rows, dtype=np.float32)


def block(entity, ids, **columns):
    return EntityBlock(entity, tuple(ids), columns)


def strings(lists):
    return pa.array(lists, pa.list_(pa.string()))


def floats(lists):
    return pa.array(lists, pa.list_(pa.float32()))


def everyone(user, item):
    """Return the batch of all users with all items."""
    users, items = np.divmod(np.arange(len(user) * len(item)), max(len(item), 1))
    return FeatureBatch("s", user, item, users, items)


def test_known_values():
    user = block(
        "user",
        ["u", "v"],
        **{
            USER_TEXT: float32([[3, 4], [NAN, NAN]]),
            CENTROID: float32([[0, 2], [1, 0]]),
            NEXT: strings([["i", "x", "j", "i"], None]),
            PROBS: floats([[-0.5, -1, -2, -3], None]),
            QUERY: float32([[2, 1, -7], [NAN, NAN, NAN]]),
        },
    )
    item = block(
        "item",
        ["i", "j", "k"],
        **{
            ITEM_TEXT: float32([[1, 0], [0, 0], [NAN, NAN]]),
            VECTOR: float32([[3, 0.5, 1], [0, 5, 1], [NAN, NAN, NAN]]),
        },
    )
    batch = everyone(user, item)
    assert batch.pairwise_names == PAIRWISE
    expected = [  # text cosine, centroid cosine, reciprocal rank, listed, log-probability, score
        [0.6, 0, 1, 1, -0.5, -0.5],  # listed twice: the first place counts
        [NAN, NAN, 1 / 3, 1, -2, -2],  # a vector of zeros has no direction
        [NAN, NAN, 0, 0, NAN, NAN],
        [NAN, 1, NAN, NAN, NAN, NAN],
        [NAN, NAN, NAN, NAN, NAN, NAN],
        [NAN, NAN, NAN, NAN, NAN, NAN],
    ]
    np.testing.assert_array_equal(batch.pairwise, float32(expected))
    assert batch.pairwise.dtype == np.float32
    assert batch.pairwise.flags.c_contiguous


@pytest.mark.parametrize(
    ("user", "item", "names"),
    [
        ([], [], ()),
        ([USER_TEXT], [], ()),
        ([USER_TEXT], [ITEM_TEXT], PAIRWISE[:1]),
        ([CENTROID], [ITEM_TEXT], PAIRWISE[1:2]),
        ([NEXT], [], PAIRWISE[2:4]),
        ([PROBS], [], ()),
        ([NEXT, PROBS], [ITEM_TEXT], PAIRWISE[2:5]),
        ([QUERY], [ITEM_TEXT], ()),
        ([QUERY], [VECTOR], PAIRWISE[5:]),
    ],
)
def test_a_service_has_those_that_its_columns_allow(user, item, names):
    values = {
        USER_TEXT: float32([[1, 0]]),
        CENTROID: float32([[1, 0]]),
        NEXT: strings([["i"]]),
        PROBS: floats([[-1]]),
        ITEM_TEXT: float32([[1, 0]]),
        QUERY: float32([[1, 0]]),
        VECTOR: float32([[1, 0]]),
    }
    batch = everyone(
        block("user", ["u"], **{name: values[name] for name in user}),
        block("item", ["i"], **{name: values[name] for name in item}),
    )
    assert batch.pairwise_names == names
    assert batch.pairwise.shape == (1, len(names))


def test_two_versions_of_a_view_are_refused():
    user = block("user", ["u"], a_v1__embedding=float32([[1]]), a_v2__embedding=float32([[1]]))
    with pytest.raises(ServiceError, match="found a_v1__embedding and a_v2__embedding; keep one version"):
        _ = everyone(user, block("item", ["i"], **{ITEM_TEXT: float32([[1]])})).pairwise


def test_vectors_of_two_lengths_are_refused_unless_nothing_is_known():
    item = block("item", ["i"], **{ITEM_TEXT: float32([[1, 2, 3]])})
    with pytest.raises(ServiceError, match="expected vectors of one length, found 2 and 3"):
        _ = everyone(block("user", ["u"], **{USER_TEXT: float32([[1, 2]])}), item).pairwise
    unknown = everyone(block("user", ["u"], **{USER_TEXT: np.empty((1, 0), dtype=np.float32)}), item)
    assert np.isnan(unknown.pairwise).all()


def test_what_stands_in_for_a_user_is_not_known_of_them():
    columns = {
        NEXT: strings([["i", "x"]] * 3),
        PROBS: floats([[-0.5, -1]] * 3),
        CENTROID: float32([[0, 2]] * 3),
        QUERY: float32([[2, 1]] * 3),
        USER_TEXT: float32([[3, 4]] * 3),
    }
    status = np.array([Status.PRESENT, Status.FALLBACK, Status.MISSING], np.uint8)
    everyones = EntityBlock("user", ("u", "v", "w"), columns, {"user_next_items_v1": status})
    item = block("item", ["i", "j"], **{ITEM_TEXT: float32([[3, 4], [0, 1]]), VECTOR: float32([[1, 0], [0, 1]])})
    own = everyone(block("user", ["u", "v", "w"], **columns), item)
    batch = everyone(everyones, item)
    expected = own.pairwise.copy()
    assert not np.isnan(expected[:, :-2]).any()
    expected[2:4, 1:] = NAN  # the second user's; their text is another view's, and theirs
    np.testing.assert_array_equal(batch.pairwise, expected)
    shuffled = np.array([3, 0, 5, 2, 2])
    np.testing.assert_array_equal(batch.take(shuffled).pairwise, expected[shuffled])


def test_lists_that_do_not_go_together_are_refused():
    user = block("user", ["u"], **{NEXT: strings([["i", "j"]]), PROBS: floats([[-1]])})
    with pytest.raises(ServiceError, match="expected lists of one length per row"):
        _ = everyone(user, block("item", ["j"])).pairwise


def random_blocks(seed, users, items, dimension):
    rng = np.random.default_rng(seed)
    ids = [f"i{n}" for n in range(items)]
    lists = [list(rng.choice(ids, min(5, items), replace=False)) if rng.random() < 0.8 else None for _ in range(users)]

    def vectors(n):
        values = rng.standard_normal((n, dimension)).astype(np.float32)
        values[rng.random(n) < 0.1] = np.nan
        return values

    user = block(
        "user",
        [f"u{n}" for n in range(users)],
        **{
            USER_TEXT: vectors(users),
            CENTROID: vectors(users),
            NEXT: strings(lists),
            PROBS: floats([None if found is None else rng.random(len(found)).tolist() for found in lists]),
            QUERY: vectors(users),
        },
    )
    return user, block("item", ids, **{ITEM_TEXT: vectors(items), VECTOR: vectors(items)})


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    users=st.integers(1, 6),
    items=st.integers(1, 40),
    dimension=st.sampled_from([1, 2, 7, 8, 33, 128, 129, 384, 768]),
)
def test_a_pair_has_the_same_bits_in_any_batch(seed, users, items, dimension):
    user, item = random_blocks(seed, users, items, dimension)
    rng = np.random.default_rng(seed)
    pairs = everyone(user, item)
    shuffled = rng.permutation(len(pairs))
    training = pairs.take(shuffled).pairwise  # many users, in any order
    for row in range(users):
        serving = FeatureBatch(
            "s", user.take(np.array([row])), item, np.zeros(items, dtype=np.int64), np.arange(items)
        ).pairwise
        place = {int(pair): at for at, pair in enumerate(shuffled)}
        same = training[[place[row * items + column] for column in range(items)]]
        assert serving.tobytes() == same.tobytes()
    alone = pairs.take(shuffled[:1]).pairwise
    assert alone.tobytes() == training[:1].tobytes()


def test_500_candidates_have_the_bits_of_a_training_set():
    user, item = random_blocks(5, 3, 2500, 384)
    rows = np.random.default_rng(0).integers(0, 3, 5000), np.random.default_rng(1).integers(0, 2500, 5000)
    training = FeatureBatch("s", user, item, *rows).pairwise
    for row in range(3):
        mine = np.flatnonzero(rows[0] == row)[:500]
        candidates = item.take(rows[1][mine])
        serving = FeatureBatch("s", user.take(np.array([row])), candidates, np.zeros(500, np.int64), np.arange(500))
        assert serving.pairwise.tobytes() == training[mine].tobytes()


def test_shared_values_give_the_same_as_plain_ones():
    user, item = random_blocks(7, 4, 30, 16)
    plain = everyone(user, item.take(np.array([3, 3, 0, 29])))
    missing, rows = np.full((1, 16), np.nan, np.float32), np.array([3, 3, 0, 29])
    stored = {name: Stored(np.concatenate([item.columns[name], missing]), rows) for name in (ITEM_TEXT, VECTOR)}
    shared = EntityBlock("item", ("i3", "i3", "i0", "i29"), Columns({}, stored))
    assert everyone(user, shared).pairwise.tobytes() == plain.pairwise.tobytes()


@pytest.mark.parametrize(("users", "items"), [(0, 0), (1, 0), (0, 3)])
def test_nothing_to_pair(users, items):
    user, item = random_blocks(1, users, items, 4) if users and items else (
        block("user", ["u"] * users, **{USER_TEXT: np.empty((users, 4), np.float32), NEXT: strings([None] * users)}),
        block("item", ["i"] * items, **{ITEM_TEXT: np.empty((items, 4), np.float32)}),
    )  # fmt: skip
    batch = FeatureBatch("s", user, item, np.empty(0, np.int64), np.empty(0, np.int64))
    assert batch.pairwise.shape == (0, 3)
