"""Models of time slices: which one makes which rows, and what a directory of them must hold."""

from __future__ import annotations

import shutil
from datetime import timedelta

import numpy as np
import pytest

from recsys_llm.errors import CheckpointError
from recsys_llm.seqgan import Checkpoint, SeqGANConfig, train
from recsys_llm.seqgan.rolling import SLICES_FILE, RollingModel, Span, slice_directory, slice_times
from tests.seqgan.seqgan_data import UNTIL, chain

TINY = SeqGANConfig(embedding_dim=4, hidden_dim=4, mle_epochs=1, adversarial_epochs=0)
CUTS = tuple(UNTIL - timedelta(days=days) for days in (20, 10, 0))
MICRO = timedelta(microseconds=1)


@pytest.fixture(scope="module")
def checkpoints() -> tuple[Checkpoint, ...]:
    few = chain(users=5)
    return tuple(train(few, TINY, until=cut, device="cpu") for cut in CUTS)


@pytest.fixture
def directory(tmp_path, checkpoints):
    target = tmp_path / "seqgan"
    for number, checkpoint in enumerate(checkpoints):
        checkpoint.save(slice_directory(target, number))
    RollingModel(checkpoints).write(target)
    return target


def test_what_was_written_is_loaded(directory, checkpoints):
    found = RollingModel.load(directory)
    assert [one.fingerprint for one in found.checkpoints] == [one.fingerprint for one in checkpoints]
    assert found.fingerprint == RollingModel(checkpoints).fingerprint
    assert found.fingerprint != RollingModel(checkpoints[:2]).fingerprint
    assert found.newest.trained_until == CUTS[-1]


def test_a_single_checkpoint_is_a_model_from_its_cutoff_on(tmp_path, checkpoints):
    checkpoints[0].save(tmp_path / "one")
    found = RollingModel.load(tmp_path / "one")
    assert found.fingerprint == checkpoints[0].fingerprint
    late = CUTS[-1] + timedelta(days=100)
    assert list(found.spans(CUTS[0] - timedelta(days=9), late)) == [Span(0, CUTS[0] - MICRO, late)]
    assert list(found.spans(CUTS[0], late)) == [Span(0, CUTS[0], late)]
    assert list(found.spans(CUTS[0] - timedelta(days=9), CUTS[0] - MICRO)) == []


def test_spans_meet_and_end_before_the_next_cutoff(checkpoints):
    models = RollingModel(checkpoints)
    start, end = CUTS[0] - timedelta(days=1), CUTS[2] + timedelta(days=1)
    assert list(models.spans(start, end)) == [
        Span(0, CUTS[0] - MICRO, CUTS[1] - MICRO),
        Span(1, CUTS[1] - MICRO, CUTS[2] - MICRO),
        Span(2, CUTS[2] - MICRO, end),
    ]
    assert list(models.spans(CUTS[1], CUTS[1] + MICRO)) == [Span(1, CUTS[1], CUTS[1] + MICRO)]


@pytest.mark.parametrize("change", ["slices", "other model", "missing", "byte"])
def test_altered_directories_are_refused(directory, change):
    if change == "slices":
        file = directory / SLICES_FILE
        file.write_bytes(file.read_bytes().replace(b"2024", b"2023"))
    elif change == "other model":
        shutil.rmtree(slice_directory(directory, 1))
        shutil.copytree(slice_directory(directory, 0), slice_directory(directory, 1))
    elif change == "missing":
        shutil.rmtree(slice_directory(directory, 2))
    else:
        file = next(slice_directory(directory, 1).glob("*.safetensors"))
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    with pytest.raises(CheckpointError):
        RollingModel.load(directory)


def test_models_that_do_not_go_together_are_refused(checkpoints):
    with pytest.raises(CheckpointError, match="expected ascending training cut-offs"):
        RollingModel(checkpoints[::-1])
    wider = train(
        chain(users=5),
        SeqGANConfig(embedding_dim=5, hidden_dim=4, mle_epochs=1, adversarial_epochs=0),
        until=UNTIL + timedelta(days=1),
        device="cpu",
    )
    with pytest.raises(CheckpointError, match="expected one generator"):
        RollingModel((*checkpoints, wider))


def test_slices_hold_about_as_many_events_each():
    assert slice_times(np.arange(100), 4) == [25, 50, 75]
    assert slice_times(np.ones(10, np.int64), 3) == []  # one time can't be cut
    assert slice_times(np.array([1, 1, 1, 2]), 2) == []
    assert slice_times(np.array([1, 2, 2, 2]), 2) == [2]
    assert slice_times(np.array([5, 6]), 1) == []
