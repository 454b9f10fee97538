"""Going on from a user's state is reading the whole history, however the events come in."""

from __future__ import annotations

import copy
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_llm.seqgan import Checkpoint, Histories, next_items, reading
from recsys_llm.seqgan.sequences import Sequences
from recsys_llm.seqgan.states import UserStates, advance, next_items_of, opening_states, states_after
from tests.seqgan.seqgan_data import START, table

USERS = ("u1", "u2", "u3")
events = st.tuples(st.sampled_from(USERS), st.sampled_from(["i00", "i01", "i02", "i19", "new"]), st.integers(0, 25))


def histories_of(rows: list[tuple[str, str, int]]) -> Histories:
    return Histories.from_interactions(
        table([(user, item, START + timedelta(hours=hour)) for user, item, hour in rows])
    )


def in_slices(checkpoint: Checkpoint, rows: list[tuple[str, str, int]], cuts: list[int], **how: bool) -> UserStates:
    """Read slice by slice; every user has an event in each."""
    states = opening_states(checkpoint, len(USERS))
    for low, high in zip([0, *cuts], [*cuts, 10_000], strict=True):
        part = [row for row in rows if low <= row[2] < high] + [(user, "i05", high - 1) for user in USERS]
        states = advance(checkpoint, states, histories_of(part), device="cpu", **how)
    return states


def with_rebuy(checkpoint: Checkpoint, *, weight: float) -> Checkpoint:
    """Return a copy: the checkpoint is that of other tests too."""
    copied = copy.deepcopy(checkpoint)
    copied.generator("chosen").rebuy.copy_(torch.tensor([weight, 20.0, 0.7]))
    return copied


@pytest.mark.parametrize("memory", ["all items", "last groups", "none"])
@settings(max_examples=25, deadline=None)
@given(rows=st.lists(events, max_size=40), cuts=st.lists(st.integers(1, 24), max_size=4, unique=True).map(sorted))
def test_slices_of_events_give_what_the_whole_history_gives(trained, memory, rows, cuts):
    seen = {"filter_seen": memory == "all items"}
    every = rows + [(user, "i05", high - 1) for user in USERS for high in [*cuts, 10_000]]
    whole = histories_of(every)
    checkpoint = with_rebuy(trained, weight=2.0 if memory == "last groups" else 0.0)
    found = next_items_of(checkpoint, in_slices(checkpoint, rows, cuts, **seen), 6, device="cpu", **seen)
    expected = next_items(checkpoint, whole, whole.user_offsets[1:] - 1, 6, device="cpu", **seen)
    np.testing.assert_allclose(found.log_probs, expected.log_probs, atol=1e-5)
    np.testing.assert_allclose(found.queries, expected.queries, atol=1e-5)
    np.testing.assert_allclose(found.entropy, expected.entropy, atol=1e-5)
    np.testing.assert_allclose(found.centroid, expected.centroid, atol=1e-5)
    assert found.item_lists() == expected.item_lists()


def test_a_long_history_goes_on_in_segments_and_lanes(trained, events, monkeypatch):
    monkeypatch.setattr(reading, "SEGMENT", 7)
    monkeypatch.setattr(reading, "LANES", 3)
    histories = Histories.from_interactions(events)
    positions = histories.user_offsets[:-1] + np.arange(50)  # of unequal lengths
    found = next_items_of(trained, states_after(trained, histories, positions, device="cpu"), 5, device="cpu")
    expected = next_items(trained, histories, positions, 5, device="cpu")
    np.testing.assert_allclose(found.log_probs, expected.log_probs, atol=1e-5)
    assert found.item_lists() == expected.item_lists()


def test_what_is_remembered_is_bounded_by_the_catalogue(trained):
    rows = [("u1", f"i{hour % 20:02}", hour) for hour in range(3_000)]
    histories = histories_of(rows)
    for length in (5, 20, 3_000):
        every = states_after(trained, histories, np.array([length - 1]), filter_seen=True, device="cpu")
        assert len(every.memory.items) == min(length, 20)  # each distinct item once
    last = np.array([len(rows) - 1])
    lately = states_after(with_rebuy(trained, weight=1.0), histories, last, filter_seen=False, device="cpu")
    assert 10 < len(lately.memory.timestamps) < 30  # the groups that the re-buy term counts
    plain = states_after(trained, histories, last, filter_seen=False, device="cpu")
    assert len(plain.memory.items) == 0
    assert plain.vectors.shape == every.vectors.shape == lately.vectors.shape


def test_states_at_all_positions_are_those_of_each(trained, events, monkeypatch):
    histories = Histories.from_interactions(events)
    model, sequences = trained.generator("chosen"), Sequences.encode(histories, trained.vocabulary)
    monkeypatch.setattr(reading, "SEGMENT", 7)
    users, read = np.array([3, 0, 3, 3, 1]), np.array([80, 0, 1, 7, 22])
    found = reading.states_at(model, model.item_table().vectors, sequences, users, read)
    np.testing.assert_allclose(found[1], reading.opening_state(model), atol=1e-6)
    for row in (0, 2, 3, 4):
        position = histories.user_offsets[users[row]] + read[row] - 1
        one = states_after(trained, histories, np.array([position]), device="cpu")
        np.testing.assert_allclose(found[row], one.vectors[0], atol=1e-5)


def test_several_positions_of_a_user_are_refused(trained, events):
    with pytest.raises(IndexError, match="at most one of each user"):
        states_after(trained, Histories.from_interactions(events), np.array([0, 1]), device="cpu")


def test_users_without_a_new_group_are_refused(trained):
    states = opening_states(trained, 2)
    with pytest.raises(IndexError, match="expected groups of 2 users, found 1 users"):
        advance(trained, states, histories_of([("u1", "i00", 1)]), device="cpu")
    none = Histories(pa.array(["a", "b"]), pa.array(["i00"]), np.array([0, 1]), np.array([0, 1, 1]), np.array([5]))
    with pytest.raises(IndexError, match="1 of them without"):
        advance(trained, states, none, device="cpu")
