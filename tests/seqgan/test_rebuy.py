"""The re-buy term: against a plain loop, chosen where repeats pay, off where they don't."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pytest
import torch

from recsys_llm.seqgan import Checkpoint, Histories, Vocabulary, next_items, train
from recsys_llm.seqgan.generator import Generator
from recsys_llm.seqgan.ranking import FAINT, Rebuy, add_rebuy, rank, rebuy_entries
from recsys_llm.seqgan.rebuy import fit_rebuy
from recsys_llm.seqgan.sequences import Sequences
from tests.seqgan.seqgan_data import SMALL, START, table

VOCABULARY = Vocabulary(tuple(f"i{item:02}" for item in range(40)))


def favourites(users: int = 40, days: int = 12) -> pa.Table:
    """Every user has three items of their own, and takes one of them in turn, together with any other item."""
    rng = np.random.default_rng(0)
    rows = set()
    for user in range(users):
        own = rng.choice(40, 3, replace=False)
        for day in range(days):
            when = START + timedelta(days=day, seconds=user)
            rows |= {(f"u{user:02}", f"i{own[day % 3]:02}", when), (f"u{user:02}", f"i{rng.integers(40):02}", when)}
    return table(sorted(rows))


def encoded(events: pa.Table) -> Sequences:
    return Sequences.encode(Histories.from_interactions(events), VOCABULARY)


def untrained() -> Generator:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Generator(torch.ones(40, dtype=torch.long), None, embedding_dim=4, hidden_dim=4)


def test_entries_are_those_of_a_plain_loop() -> None:
    sequences = encoded(favourites(users=5))
    users, read = np.array([0, 0, 2, 4, 4]), np.array([0, 5, 12, 1, 12])
    for _, scale, decay in ((1.0, 20.0, 0.85), (1.0, 5.0, 0.5)):
        flat, strength = rebuy_entries(sequences, users, read, 40, Rebuy(1.0, scale, decay))
        found = torch.zeros(5, 40)
        add_rebuy(found, (flat, strength), 2.0)
        for row, (user, count) in enumerate(zip(users, read, strict=True)):
            expected: dict[int, float] = defaultdict(float)
            for age in range(count):
                group = sequences.user_offsets[user] + count - 1 - age
                for item in sequences.items[sequences.group_offsets[group] : sequences.group_offsets[group + 1]]:
                    expected[item] += decay**age if scale * decay**age >= FAINT else 0.0
            plain = [2.0 * np.log1p(scale * expected[item]) for item in range(40)]
            np.testing.assert_allclose(found[row].numpy(), plain, atol=1e-5)


def test_the_term_is_chosen_where_users_come_back_to_their_own() -> None:
    sequences, generator = encoded(favourites()), untrained()
    groups = np.arange(len(sequences.timestamps))
    chosen = fit_rebuy(generator, sequences, groups)
    assert generator.rebuy[0] > 0
    weight = generator.rebuy.clone()
    without = untrained()
    assert chosen > 2 * _ndcg(without, sequences, groups)
    assert fit_rebuy(generator, sequences, groups) == pytest.approx(chosen)
    assert torch.equal(generator.rebuy, weight)  # it starts from scratch


def test_the_term_stays_off_where_nothing_is_had_twice() -> None:
    rows = [
        (f"u{user}", f"i{(user + day) % 40:02}", START + timedelta(days=day)) for user in range(8) for day in range(9)
    ]
    sequences, generator = encoded(table(rows)), untrained()
    fit_rebuy(generator, sequences, np.arange(len(sequences.timestamps)))
    assert generator.rebuy.tolist() == [0.0, 1.0, 0.0]


def test_probabilities_stay_the_generators_own() -> None:
    sequences, generator = encoded(favourites(users=3)), untrained()
    users, read = np.array([0, 1, 2]), np.array([5, 5, 5])
    queries = torch.randn(3, 4)
    table_, weights = generator.item_table(), torch.tensor([50.0, 20.0, 0.85])
    with torch.no_grad():
        plain = rank(queries, table_, sequences, users, read, k=40, filter_seen=False)
        ours = rank(queries, table_, sequences, users, read, k=40, filter_seen=False, rebuy=weights)
        hidden = rank(queries, table_, sequences, users, read, k=40, filter_seen=True, rebuy=weights)
    assert not torch.equal(plain.items, ours.items)
    in_order = [
        values.gather(1, items.argsort(1)) for _, values, items in ((0, r.log_probs, r.items) for r in (plain, ours))
    ]
    torch.testing.assert_close(*in_order)
    for user in range(3):
        group = sequences.user_offsets[user]
        had = set(sequences.items[sequences.group_offsets[group] : sequences.group_offsets[group + 5]].tolist())
        assert set(ours.items[user, : len(had)].tolist()) == had
        assert not had & set(hidden.items[user].tolist())


def test_a_trained_model_keeps_the_term(tmp_path) -> None:
    events = favourites()
    config = replace(SMALL, mle_epochs=1, learning_rate=0.001, validation_share=0.3)
    trained = train(events, config, until=START + timedelta(days=10), device="cpu")
    assert trained.generator("mle").rebuy[0] > 0
    trained.save(tmp_path / "model")
    loaded = Checkpoint.load(tmp_path / "model")
    assert torch.equal(loaded.generator("chosen").rebuy, trained.generator("chosen").rebuy)
    assert loaded.fingerprint == trained.fingerprint
    histories = Histories.from_interactions(events.slice(0, 20))
    one, other = (next_items(model, histories, np.array([3, 8]), 5) for model in (trained, loaded))
    assert one.item_ids.tolist() == other.item_ids.tolist()


def _ndcg(generator: Generator, sequences: Sequences, groups: np.ndarray) -> float:
    from recsys_llm.seqgan.evaluation import score_generator

    table_ = generator.item_table()
    return score_generator(generator, table_, table_.vectors, sequences, groups, filter_seen=False)["ndcg_at_10"]
