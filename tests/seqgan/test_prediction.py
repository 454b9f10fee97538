from __future__ import annotations

from datetime import timedelta

import numpy as np
import pyarrow as pa
import pytest
import torch

from recsys_llm.errors import CheckpointError, FingerprintError
from recsys_llm.seqgan import Checkpoint, Histories, ItemVectors, NextItems, next_items, reading, scoring_vectors
from tests.seqgan.seqgan_data import ITEMS, START, UNTIL, table, vectors


def of_users(events: pa.Table, users: list[str]) -> pa.Table:
    return events.filter(pa.compute.is_in(events["user_id"], pa.array(users)))


def close(one: NextItems, other: NextItems, rows: slice) -> None:
    np.testing.assert_allclose(one.entropy[rows], other.entropy, atol=1e-5)
    np.testing.assert_allclose(one.log_probs[rows], other.log_probs, atol=1e-5)
    assert (one.item_ids[rows] == other.item_ids).mean() > 0.99  # ranks may swap where two are equal within 1e-5


def test_rows_do_not_depend_on_later_events(trained: Checkpoint, events: pa.Table) -> None:
    one = of_users(events, ["u07"])
    whole = next_items(trained, Histories.from_interactions(one), np.arange(80), 5)
    for length in (1, 30, 79):
        prefix = Histories.from_interactions(one.slice(0, length))
        close(whole, next_items(trained, prefix, np.arange(length), 5), slice(0, length))


def test_rows_do_not_depend_on_other_users_or_on_the_order_asked(trained: Checkpoint, events: pa.Table) -> None:
    everyone = Histories.from_interactions(events)
    alone = next_items(trained, Histories.from_interactions(of_users(events, ["u07"])), np.arange(80), 5)
    all_rows = next_items(trained, everyone, np.arange(everyone.groups), 5)
    close(all_rows, alone, slice(7 * 80, 8 * 80))
    order = np.random.default_rng(0).permutation(everyone.groups)[:300]
    asked = next_items(trained, everyone, order, 5)
    np.testing.assert_allclose(asked.log_probs, all_rows.log_probs[order], atol=1e-5)


def test_long_histories_are_read_in_segments(
    trained: Checkpoint, events: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    histories = Histories.from_interactions(events)
    positions = np.arange(0, histories.groups, 11)
    expected = next_items(trained, histories, positions, 5)
    monkeypatch.setattr(reading, "SEGMENT", 7)
    monkeypatch.setattr(reading, "LANES", 3)
    close(next_items(trained, histories, positions, 5), expected, slice(None))


def test_queries_score_every_item(trained: Checkpoint, events: pa.Table) -> None:
    histories = Histories.from_interactions(of_users(events, ["u03", "u07"]))
    found = next_items(trained, histories, np.arange(histories.groups), 5, filter_seen=False)
    scores = found.queries @ scoring_vectors(trained).T
    np.testing.assert_allclose(np.exp(scores).sum(1), 1, atol=1e-4)
    place = {item: index for index, item in enumerate(trained.vocabulary.item_ids)}
    listed = np.vectorize(place.get)(found.item_ids)
    np.testing.assert_allclose(np.take_along_axis(scores, listed, 1), found.log_probs, atol=1e-4)
    np.testing.assert_allclose(-(np.exp(scores) * scores).sum(1), found.entropy, atol=1e-3)


def test_a_row_is_the_softmax_of_a_plain_forward_pass(trained: Checkpoint, events: pa.Table) -> None:
    one = of_users(events, ["u03"])
    model = trained.generator("chosen")
    indexes = trained.vocabulary.encode(one["item_id"].combine_chunks())[:12]
    with torch.no_grad():
        item_table = model.item_table()
        inputs = torch.cat([model.start.unsqueeze(0), item_table.vectors[torch.from_numpy(indexes)]]).unsqueeze(0)
        queries, _ = model(inputs)
        log_p = (queries[0, -1] @ item_table.vectors.T + item_table.bias).log_softmax(0)
    result = next_items(trained, Histories.from_interactions(one), np.array([11]), 4)
    best = log_p.topk(4)
    assert result.item_ids[0].tolist() == [trained.vocabulary.item_ids[index] for index in best.indices]
    np.testing.assert_allclose(result.log_probs[0], best.values, atol=1e-5)
    assert float(result.entropy[0]) == pytest.approx(float(-(log_p.exp() * log_p).sum()), abs=1e-5)
    mean = trained.text[best.indices.numpy()].sum(0)
    np.testing.assert_allclose(result.centroid[0], mean / np.linalg.norm(mean), atol=1e-5)


def test_seen_items_are_left_out_and_rows_get_shorter(trained: Checkpoint) -> None:
    rows = [("u", f"i{number:02}", START + timedelta(days=number)) for number in range(ITEMS)]
    histories = Histories.from_interactions(table(rows))
    result = next_items(trained, histories, np.arange(ITEMS), 100, filter_seen=True)
    assert result.item_ids.shape == (ITEMS, ITEMS + 2)  # two items of the catalogue have no events
    for position in range(ITEMS):
        length = ITEMS + 1 - position
        names = result.item_ids[position].tolist()
        assert result.lengths[position] == length
        assert names[length:] == [None] * (position + 1) and np.isnan(result.log_probs[position, length:]).all()
        assert set(names[:length]) == set(trained.vocabulary.item_ids) - {f"i{n:02}" for n in range(position + 1)}
        assert (np.diff(result.log_probs[position, :length]) <= 0).all()
    lists = result.item_lists().to_pylist()
    assert [len(names) for names in lists] == result.lengths.tolist()
    assert lists[-1] == [name for name in result.item_ids[-1] if name is not None]
    assert [len(row) for row in result.log_prob_lists().to_pylist()] == result.lengths.tolist()
    unfiltered = next_items(trained, histories, np.arange(ITEMS), 100, filter_seen=False)
    assert (unfiltered.lengths == ITEMS + 2).all()
    np.testing.assert_allclose(np.exp(unfiltered.log_probs).sum(1), 1.0, atol=1e-4)


def test_unknown_items_are_passed_over_or_read_by_their_text(trained: Checkpoint) -> None:
    rows = [("u", "new", UNTIL), ("v", "newer", UNTIL), ("w", "i03", UNTIL)]
    histories = Histories.from_interactions(table(rows))
    blind = next_items(trained, histories, np.arange(3), 5)
    np.testing.assert_allclose(blind.log_probs[0], blind.log_probs[1], atol=1e-6)
    text = vectors().vectors
    extra = ItemVectors(("i03", "new", "newer"), text[[9, 3, 4]], "encoder-1")
    read = next_items(trained, histories, np.arange(3), 5, item_vectors=extra)
    assert np.abs(read.log_probs[0] - read.log_probs[1]).max() > 1e-3
    np.testing.assert_allclose(read.log_probs[2], blind.log_probs[2], atol=1e-6)  # known items stay as trained
    hidden = next_items(trained, histories, np.arange(3), 50, item_vectors=extra, filter_seen=True)
    assert hidden.lengths.tolist() == [22, 22, 21]


def test_what_cannot_be_asked_is_refused(trained: Checkpoint, events: pa.Table) -> None:
    histories = Histories.from_interactions(events)
    with pytest.raises(IndexError, match="expected 0 to 3999, found 2 to 4000"):
        next_items(trained, histories, np.array([2, 4000]), 5)
    other = ItemVectors(("new",), vectors().vectors[:1], "encoder-2")
    with pytest.raises(FingerprintError, match="expected encoder encoder-1, found encoder-2"):
        next_items(trained, histories, np.array([0]), 5, item_vectors=other)
    only_mle = Checkpoint.build(
        trained.vocabulary, trained.counts, trained.text, {"mle": trained.generators["mle"]}, trained.manifest
    )
    with pytest.raises(CheckpointError, match="no 'adversarial' generator"):
        next_items(only_mle, histories, np.array([0]), 5, generator="adversarial")


def test_no_positions_give_no_rows(trained: Checkpoint, events: pa.Table) -> None:
    result = next_items(trained, Histories.from_interactions(events), np.zeros(0, np.int64), 5)
    assert result.item_ids.shape == (0, 5) and result.item_lists().to_pylist() == []
