from __future__ import annotations

from collections import defaultdict
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_llm.errors import RowError, SchemaError
from recsys_llm.seqgan.histories import Histories, sorted_interactions
from recsys_llm.seqgan.sequences import Sequences, Windows, make_batch
from recsys_llm.seqgan.vocabulary import Vocabulary
from recsys_llm.timestamps import TIMESTAMP

ORIGIN = datetime(2024, 1, 1, tzinfo=UTC)
ROWS = st.lists(st.tuples(st.sampled_from("xyz"), st.integers(0, 5), st.sampled_from("abcde")), max_size=40)


def as_table(rows: list[tuple[str, int, str]]) -> pa.Table:
    return pa.table(
        {
            "user_id": pa.array([user for user, _, _ in rows], pa.string()),
            "item_id": pa.array([item for _, _, item in rows], pa.string()),
            "event_timestamp": pa.array([ORIGIN + timedelta(seconds=time) for _, time, _ in rows], TIMESTAMP),
        }
    )


def oracle(rows: list[tuple[str, int, str]]) -> dict[str, list[tuple[int, list[str]]]]:
    grouped: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    for user, time, item in rows:
        grouped[user][time].add(item)
    return {user: [(time, sorted(items)) for time, items in sorted(grouped[user].items())] for user in sorted(grouped)}


def unflattened(histories: Histories) -> dict[str, list[tuple[int, list[str]]]]:
    items = histories.item_ids.to_pylist()
    origin = int(ORIGIN.timestamp()) * 1_000_000
    return {
        user: [
            (
                int(histories.timestamps[group] - origin) // 1_000_000,
                items[histories.group_offsets[group] : histories.group_offsets[group + 1]],
            )
            for group in range(histories.user_offsets[number], histories.user_offsets[number + 1])
        ]
        for number, user in enumerate(histories.user_ids.to_pylist())
    }


def test_the_docstrings_example() -> None:
    histories = Histories.from_interactions(
        as_table([("u1", 10, "a"), ("u1", 10, "b"), ("u1", 20, "c"), ("u2", 10, "a"), ("u2", 10, "d")])
    )
    assert histories.item_ids.to_pylist() == ["a", "b", "c", "a", "d"]
    assert histories.group_offsets.tolist() == [0, 2, 3, 5]
    assert histories.user_offsets.tolist() == [0, 2, 3]
    assert histories.group_users.tolist() == [0, 0, 1]


@given(ROWS)
@settings(max_examples=150, deadline=None)
def test_groups_are_those_of_brute_force(rows: list[tuple[str, int, str]]) -> None:
    assert unflattened(Histories.from_interactions(sorted_interactions(as_table(rows)))) == oracle(rows)


@given(ROWS, st.integers(0, 6))
@settings(max_examples=80, deadline=None)
def test_before_keeps_exactly_the_earlier_groups(rows: list[tuple[str, int, str]], cut: int) -> None:
    histories = Histories.from_interactions(sorted_interactions(as_table(rows)))
    vocabulary = Vocabulary.build(histories.item_ids)
    kept = Sequences.encode(histories, vocabulary).before(
        int((ORIGIN + timedelta(seconds=cut)).timestamp()) * 1_000_000
    )
    expected = oracle([row for row in rows if row[1] < cut])
    names = [vocabulary.item_ids[index] for index in kept.items]
    assert names == [item for groups in expected.values() for _, items in groups for item in items]
    assert np.diff(kept.user_offsets).sum() == sum(len(groups) for groups in expected.values())


@given(ROWS, st.integers(1, 4))
@settings(max_examples=80, deadline=None)
def test_every_group_is_a_target_once_and_its_input_is_the_group_before(
    rows: list[tuple[str, int, str]], width: int
) -> None:
    if not rows:
        return
    histories = Histories.from_interactions(sorted_interactions(as_table(rows)))
    sequences = Sequences.encode(histories, Vocabulary.build(histories.item_ids))
    windows = Windows.cut(sequences, width)
    seen = np.concatenate(list(windows.batches(3, np.random.default_rng(0))))
    assert sorted(seen.tolist()) == list(range(len(windows)))
    batch = make_batch(sequences, windows, np.arange(len(windows)), torch.device("cpu"))
    groups = [items for user in oracle(rows).values() for _, items in user]
    first = {sum(len(user) for user in list(oracle(rows).values())[:number]) for number in range(len(oracle(rows)))}
    names = Vocabulary.build(histories.item_ids).item_ids
    inputs = np.split(batch.input_items.numpy(), batch.input_offsets.numpy()[1:-1])
    targets = [batch.targets.numpy()[batch.target_rows.numpy() == step] for step in range(len(groups))]
    for number, group in enumerate(groups):
        assert [names[index] for index in targets[number]] == group
        assert [names[index] for index in inputs[number]] == ([] if number in first else groups[number - 1])
    assert float(batch.target_weights.sum()) == pytest.approx(1.0)


def test_a_thousand_ties_are_one_group_and_capped_for_training() -> None:
    rows = [("u", 1, f"i{number:04}") for number in range(1000)] + [("u", 2, "z")]
    histories = Histories.from_interactions(as_table(rows))
    assert histories.group_offsets.tolist() == [0, 1000, 1001]
    sequences = Sequences.encode(histories, Vocabulary.build(histories.item_ids))
    capped = sequences.capped(64, np.random.default_rng(0))
    assert capped.group_sizes().tolist() == [64, 1]
    assert len(np.unique(capped.items)) == 65


@pytest.mark.parametrize(
    "rows",
    [
        [("u", 2, "a"), ("u", 1, "a")],
        [("u", 1, "b"), ("u", 1, "a")],
        [("u", 1, "a"), ("v", 1, "a"), ("u", 2, "a")],
    ],
)
def test_unsorted_rows_are_refused(rows: list[tuple[str, int, str]]) -> None:
    with pytest.raises(RowError, match="sort by user_id, event_timestamp, item_id"):
        Histories.from_interactions(as_table(rows))


def test_nulls_and_wrong_columns_are_refused() -> None:
    good = as_table([("u", 1, "a"), ("u", 2, "b")])
    with pytest.raises(RowError, match="row 1: column 'item_id' is null"):
        Histories.from_interactions(good.set_column(1, "item_id", pa.array(["a", None])))
    with pytest.raises(SchemaError, match="'event_timestamp' is missing"):
        Histories.from_interactions(good.drop_columns(["event_timestamp"]))
    with pytest.raises(SchemaError, match="expected string, found int64"):
        sorted_interactions(good.set_column(1, "item_id", pa.array([1, 2])))
