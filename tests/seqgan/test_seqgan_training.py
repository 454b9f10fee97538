from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch

from recsys_llm.errors import ConfigError, DataError, TrainingError
from recsys_llm.seqgan import (
    Checkpoint,
    Histories,
    ItemVectors,
    SeqGANConfig,
    TrainingProgress,
    evaluate_next_items,
    next_items,
    pretraining,
    train,
)
from recsys_llm.seqgan.adversarial import Game
from recsys_llm.seqgan.generator import Generator
from recsys_llm.seqgan.sequences import Sequences, Windows
from recsys_llm.seqgan.vocabulary import Vocabulary
from tests.seqgan.seqgan_data import SMALL, START, UNTIL, chain, table, vectors

END = datetime(2025, 1, 1, tzinfo=UTC)
TINY = replace(SMALL, mle_epochs=2)


def test_a_planted_chain_is_learned(events: pa.Table, trained: Checkpoint) -> None:
    scores = evaluate_next_items(trained, events, start=UNTIL, end=END)
    assert not trained.filter_seen  # everyone repeats
    for contestant in ("mle", "adversarial", "chosen"):
        assert scores[contestant]["ndcg_at_10"] > 0.9, scores
    assert scores["popularity"]["ndcg_at_10"] < 0.45


def test_the_manifest_tells_how_it_went(trained: Checkpoint) -> None:
    manifest = trained.manifest
    assert manifest["trained_until"] == UNTIL.isoformat() and trained.trained_until == UNTIL
    assert set(manifest["scores"]) == {"popularity", "mle", "adversarial"}
    best = max(("mle", "adversarial"), key=lambda name: manifest["scores"][name]["ndcg_at_10"])
    assert manifest["chosen"] == best
    losses = manifest["losses"]
    assert losses["mle"]["loss"][0] > losses["mle"]["loss"][-1]
    assert manifest["scores"]["mle"]["ndcg_at_10"] == max(losses["mle"]["ndcg_at_10"])
    assert len(losses["discriminator"]["loss"]) == SMALL.discriminator_steps
    assert {len(values) for values in losses["adversarial"].values()} == {SMALL.adversarial_epochs}
    assert trained.encoder_fingerprint == "encoder-1"
    assert manifest["stopped"] == {}


@pytest.mark.parametrize("change", ["deleted", "shuffled"])
def test_events_at_or_after_until_change_nothing(events: pa.Table, change: str) -> None:
    late = pc.greater_equal(events["event_timestamp"], pa.scalar(UNTIL, events.schema.field("event_timestamp").type))
    early, after = events.filter(pc.invert(late)), events.filter(late)
    if change == "shuffled":
        order = np.random.default_rng(0).permutation(after.num_rows)
        other = after.set_column(1, "item_id", after["item_id"].take(pa.array(order)))
        changed = pa.concat_tables([early, other])
    else:
        changed = early
    assert train(changed, TINY, until=UNTIL).fingerprint == train(events, TINY, until=UNTIL).fingerprint


def test_an_event_before_until_does_change_it(events: pa.Table) -> None:
    assert train(events.slice(1), TINY, until=UNTIL).fingerprint != train(events, TINY, until=UNTIL).fingerprint


def test_training_is_deterministic_and_leaves_the_random_state_alone(events: pa.Table) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = train(events, TINY, until=UNTIL, item_vectors=vectors())
    assert torch.equal(torch.rand(1), expected)
    again = train(iter(events.to_batches(max_chunksize=500)), TINY, until=UNTIL, item_vectors=vectors())
    other = train(events, replace(TINY, seed=1), until=UNTIL, item_vectors=vectors())
    assert again.fingerprint == first.fingerprint != other.fingerprint
    assert again.manifest["losses"] == first.manifest["losses"]


def test_progress_covers_every_step(events: pa.Table) -> None:
    reports: list[TrainingProgress] = []
    train(events, TINY, until=UNTIL, progress=reports.append)
    for phase in ("mle", "discriminator", "adversarial"):
        own = [report for report in reports if report.phase == phase]
        assert [report.step for report in own] == list(range(1, own[0].total + 1))
        assert all(math.isfinite(report.loss) for report in own)
    last = reports[-1]
    assert last.reward is not None and 0 < last.reward < 1
    assert last.accuracy is not None and last.entropy is not None and last.ndcg_at_10 is not None


@pytest.mark.parametrize("after", [0, 3])
def test_a_diverging_loss_keeps_the_best_epoch(events: pa.Table, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    settings = replace(TINY, mle_epochs=3, patience=1, adversarial_epochs=0)
    reports: list[TrainingProgress] = []
    train(events, settings, until=UNTIL, progress=reports.append)
    per_epoch = sum(report.epoch == 1 for report in reports)
    one_epoch = train(events, replace(settings, mle_epochs=1), until=UNTIL).generator("mle").state_dict()
    real, calls = pretraining.teacher_forcing_loss, [0]

    def breaking(generator: Generator, *args: Any) -> torch.Tensor:
        calls[0] += 1
        return real(generator, *args) * (float("nan") if calls[0] > per_epoch + after else 1.0)

    monkeypatch.setattr(pretraining, "teacher_forcing_loss", breaking)
    broken = train(events, settings, until=UNTIL)
    assert "epoch 2: expected a finite loss, found nan" in broken.manifest["stopped"]["mle"]
    assert len(broken.manifest["losses"]["mle"]["loss"]) == 1
    kept = broken.generator("mle").state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in one_epoch.items())


def test_a_loss_that_is_never_finite_is_an_error(events: pa.Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretraining, "teacher_forcing_loss", lambda generator, *_: generator.bias.sum() * float("inf"))
    with pytest.raises(TrainingError, match="lower the learning rate"):
        train(events, TINY, until=UNTIL)


def test_rewards_come_from_a_discriminator_in_eval_mode_without_autograd(events: pa.Table) -> None:
    histories = Histories.from_interactions(events)
    sequences = Sequences.encode(histories, Vocabulary.build(histories.item_ids))
    counts = torch.from_numpy(np.bincount(sequences.items))
    game = Game(Generator(counts, None, embedding_dim=8, hidden_dim=8), sequences, SMALL, np.random.default_rng(0))
    game.discriminator_step()
    assert game.discriminator.training  # so that the next step must switch it
    modes = []
    game.discriminator.head.register_forward_hook(
        lambda head, inputs, logit: modes.append((head.training, torch.is_grad_enabled()))
    )
    before = [parameter.clone() for parameter in game.discriminator.parameters()]
    lagged = [parameter.clone() for parameter in game.lagged.parameters()]
    game.generator_step()
    assert modes and set(modes) == {(False, False)}
    assert all(torch.equal(old, new) for old, new in zip(before, game.discriminator.parameters(), strict=True))
    for old, new, fast in zip(lagged, game.lagged.parameters(), game.generator.parameters(), strict=True):
        torch.testing.assert_close(new, 0.8 * old + 0.2 * fast)


def predicted(events: pa.Table, **options: Any) -> Any:
    checkpoint = train(events, TINY, until=UNTIL, **options)
    histories = Histories.from_interactions(events)
    return next_items(checkpoint, histories, np.arange(histories.groups), 5)


def test_a_catalogue_of_one_item() -> None:
    rows = [(f"u{user}", "only", START + timedelta(days=day)) for user in range(3) for day in range(4)]
    result = predicted(table(rows))
    assert result.item_ids.tolist() == [["only"]] * 12
    assert np.allclose(result.log_probs, 0.0, atol=1e-6) and np.allclose(result.entropy, 0.0, atol=1e-6)


def test_users_with_one_event_and_a_thousand_ties() -> None:
    rows = [(f"u{user:03}", f"i{user % 7}", START + timedelta(hours=user)) for user in range(60)]
    rows += [("bulk", f"b{item:04}", START + timedelta(hours=5)) for item in range(1000)]
    rows += [("bulk", "b0001", START + timedelta(hours=hour)) for hour in (6, 7)]
    result = predicted(table(rows))
    assert result.item_ids.shape == (63, 5)
    assert np.isfinite(result.entropy).all()


def test_nothing_to_train_on() -> None:
    one = table([("u", "a", START)])
    with pytest.raises(TrainingError, match="found none"):
        train(one.slice(0, 0), SMALL, until=UNTIL)
    with pytest.raises(TrainingError, match="found none"):
        train(one, SMALL, until=START)
    with pytest.raises(TrainingError, match="two times or more"):
        train(one, SMALL, until=UNTIL)


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"dropout: expected 0.0 to 0.9, found 1.5"):
        SeqGANConfig(dropout=1.5)
    with pytest.raises(ConfigError, match="rollouts: expected a whole number, found 2.0"):
        SeqGANConfig(rollouts=2.0)  # type: ignore[arg-type]


def test_vectors_that_are_not_usable_are_refused() -> None:
    good = np.ones((2, 3), np.float32)
    with pytest.raises(DataError, match="one vector .row. per item id"):
        ItemVectors(("a",), good, "f")
    with pytest.raises(DataError, match="given twice"):
        ItemVectors(("a", "a"), good, "f")
    good[1, 2] = np.nan
    with pytest.raises(DataError, match="item 'b' is not finite"):
        ItemVectors(("a", "b"), good, "f")


def test_chain_builder_has_events_at_until() -> None:
    assert UNTIL in chain(1)["event_timestamp"].to_pylist()


def test_windows_begin_with_the_state_of_their_users_past(events: pa.Table, trained: Checkpoint) -> None:
    histories = Histories.from_interactions(
        pa.concat_tables([events.slice(0, 23), events.slice(80, 4), events.slice(160)])
    )
    sequences = Sequences.encode(histories, trained.vocabulary)
    windows = Windows.cut(sequences, 10)
    model = trained.generator("mle")
    states = pretraining.states_before(model, sequences, windows)
    vectors_of = model.item_table().vectors
    for window in range(len(windows)):
        user = int(np.searchsorted(sequences.user_offsets, windows.first[window], side="right")) - 1
        past = sequences.items[sequences.user_offsets[user] : windows.first[window]]  # groups of one item
        if windows.opens[window]:
            assert len(past) == 0 and not states[window].any()
            continue
        inputs = torch.cat([model.start.unsqueeze(0), vectors_of[torch.from_numpy(past[:-1])]]).unsqueeze(0)
        torch.testing.assert_close(states[window], model(inputs)[1][0].detach(), atol=1e-5, rtol=1e-5)
