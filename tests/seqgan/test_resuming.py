"""A training that was interrupted anywhere ends with the checkpoint of one that was not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from recsys_llm.errors import CheckpointError
from recsys_llm.seqgan import Checkpoint, TrainingProgress, train
from tests.seqgan.seqgan_data import SMALL, UNTIL, chain, vectors

SETTINGS = replace(SMALL, mle_epochs=3, patience=3, dropout=0.2)


class Interrupted(Exception):
    pass


@pytest.fixture(scope="module")
def few() -> pa.Table:
    return chain(users=8)


@pytest.fixture(scope="module")
def undisturbed(few: pa.Table) -> Checkpoint:
    return trained(few)


def trained(events: pa.Table, **more: Any) -> Checkpoint:
    settings = more.pop("settings", SETTINGS)
    return train(events, settings, until=UNTIL, item_vectors=vectors(), device="cpu", **more)


def interrupt(phase: str, epoch: int) -> Any:
    def progress(report: TrainingProgress) -> None:
        if (report.phase, report.epoch) == (phase, epoch):
            raise Interrupted

    return progress


@pytest.mark.parametrize(("phase", "epoch"), [("mle", 1), ("mle", 2), ("mle", 3), ("adversarial", 1)])
def test_an_interrupted_training_ends_as_if_it_had_not_been(few, undisturbed, tmp_path, phase, epoch):
    state = tmp_path / "seqgan.partial"
    with pytest.raises(Interrupted):
        trained(few, state=state, progress=interrupt(phase, epoch))
    reports: list[TrainingProgress] = []
    resumed = trained(few, state=state, progress=reports.append)
    assert resumed.fingerprint == undisturbed.fingerprint
    assert resumed.manifest["losses"] == undisturbed.manifest["losses"]
    epochs = {report.epoch for report in reports if report.phase == "mle"}
    assert epochs == {n for n in (1, 2, 3) if n >= epoch and phase == "mle"}  # epochs that were kept aren't repeated


def test_a_state_of_another_training_is_not_taken_up(few, tmp_path):
    state = tmp_path / "seqgan.partial"
    trained(few, state=state)
    other = replace(SETTINGS, seed=1)
    found = trained(few, settings=other, state=state)
    assert found.fingerprint == trained(few, settings=other).fingerprint
    fewer = few.slice(0, few.num_rows - 200)
    assert trained(fewer, state=state).fingerprint == trained(fewer).fingerprint


def test_a_training_that_had_ended_early_stays_ended(few, tmp_path):
    settings = replace(SETTINGS, mle_epochs=9, patience=1, learning_rate=0.5, adversarial_epochs=0)
    state = tmp_path / "seqgan.partial"
    first = trained(few, settings=settings, state=state)
    assert len(first.manifest["losses"]["mle"]["loss"]) < 9
    reports: list[TrainingProgress] = []
    again = trained(few, settings=settings, state=state, progress=reports.append)
    assert again.fingerprint == first.fingerprint and not reports


def test_a_damaged_state_is_refused(few, tmp_path):
    state = tmp_path / "seqgan.partial"
    with pytest.raises(Interrupted):
        trained(few, state=state, progress=interrupt("mle", 2))
    file = next(Path(state).glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="altered or truncated since it was saved; start the training again"):
        trained(few, state=state)
