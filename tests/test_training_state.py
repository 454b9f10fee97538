"""A training goes on from its state as if it had never stopped; a damaged state is refused."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from torch import nn

from recsys_llm.errors import CheckpointError
from recsys_llm.text.optimiser import gradient_step, make_optimiser
from recsys_llm.training_state import (
    TrainingState,
    discard_state,
    module_tensors,
    optimiser_tensors,
    random_tensors,
    restore_module,
    restore_optimiser,
    restore_random,
    state_directory,
)

CPU = torch.device("cpu")
TENSORS = {"a.weight": torch.arange(6.0).view(2, 3).t(), "b": torch.tensor(3), "c": torch.ones(2, dtype=torch.bfloat16)}
VALUES = {"losses": [0.1 + 0.2, 1e-300, math.pi], "phase": "encoder", "best": None}


@pytest.fixture
def saved(tmp_path):
    directory = tmp_path / "model.partial"
    TrainingState("run", 5, TENSORS, VALUES).save(directory)
    return directory


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_what_is_saved_is_read(saved):
    found = TrainingState.load(saved, run="run")
    assert (found.run, found.step, found.values) == ("run", 5, VALUES)
    assert set(found.tensors) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert found.tensors[name].dtype == tensor.dtype
        assert torch.equal(found.tensors[name], tensor)


def test_a_newer_state_takes_the_place_of_the_older_one(saved):
    TrainingState("run", 6, TENSORS, {}).save(saved)
    assert TrainingState.load(saved, run="run").step == 6
    assert names(saved) == ["state-000000000006.safetensors", "state.json"]


def test_a_kill_before_the_json_leaves_the_older_state(saved):
    (saved / "state-000000000006.safetensors").write_bytes(b"half")
    (saved / ".state-000000000007.safetensors.1.tmp").write_bytes(b"")
    assert TrainingState.load(saved, run="run").step == 5
    TrainingState("run", 8, TENSORS, {}).save(saved)
    assert names(saved) == ["state-000000000008.safetensors", "state.json"]


def test_there_is_none_or_one_of_another_training(tmp_path, saved, caplog):
    assert TrainingState.load(tmp_path / "nothing", run="run") is None
    with caplog.at_level(logging.WARNING):
        assert TrainingState.load(saved, run="other") is None
    assert "holds step 5 of another training" in caplog.text


@pytest.mark.parametrize("name", ["state.json", "state-000000000005.safetensors"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "empty"])
def test_a_damaged_state_is_refused(saved, name, damage):
    content = bytearray((saved / name).read_bytes())
    content[len(content) // 2] ^= 1
    changed = {"flip": bytes(content), "truncate": bytes(content[:-3]), "empty": b""}[damage]
    (saved / name).write_bytes(changed)
    with pytest.raises(CheckpointError, match=f"{name}: .*start the training again with --restart"):
        TrainingState.load(saved, run="run")


def test_a_state_without_its_tensors_is_refused(saved):
    (saved / "state-000000000005.safetensors").unlink()
    with pytest.raises(CheckpointError, match="can't be read"):
        TrainingState.load(saved, run="run")


def test_somebody_elses_directory_is_left_alone(tmp_path, saved):
    (saved / "notes.txt").write_text("mine")
    for action in (lambda: TrainingState.load(saved, run="run"), lambda: discard_state(saved)):
        with pytest.raises(CheckpointError, match=r"holds notes\.txt, which is no training state"):
            action()
    with pytest.raises(CheckpointError, match=r"notes\.txt"):
        TrainingState("run", 6, TENSORS, {}).save(saved)
    assert (saved / "notes.txt").read_text() == "mine"
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="is a file"):
        TrainingState("run", 6, TENSORS, {}).save(tmp_path / "file")


def test_a_discarded_state_is_gone(tmp_path, saved):
    discard_state(saved)
    discard_state(saved)
    assert not saved.exists()
    assert state_directory(tmp_path / "model") == saved


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))

    def steps(self, optimiser, count):
        return [
            gradient_step(optimiser, self.body(torch.randn(16, 4)).square().mean(), learning_rate=0.01, where="test")
            for _ in range(count)
        ]


def test_model_optimiser_and_random_numbers_go_on_bit_for_bit(tmp_path):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Model()
        optimiser = make_optimiser([model], weight_decay=0.1)
        model.steps(optimiser, 3)
        tensors = module_tensors("model", model) | optimiser_tensors("optimiser", optimiser)
        TrainingState("run", 3, tensors | random_tensors("random", CPU), {}).save(tmp_path / "state")
        losses = model.steps(optimiser, 3)

        torch.manual_seed(99)
        other = Model()
        another = make_optimiser([other], weight_decay=0.1)
        found = TrainingState.load(tmp_path / "state", run="run")
        restore_module("model", other, found.tensors)
        restore_optimiser("optimiser", another, found.tensors)
        restore_random("random", CPU, found.tensors)
        assert other.steps(another, 3) == losses
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


def test_a_state_of_another_shape_is_refused(tmp_path):
    model, other = nn.Linear(4, 8), nn.Linear(4, 9)
    optimiser = make_optimiser([model], weight_decay=0.1)
    gradient_step(optimiser, model(torch.ones(1, 4)).sum(), learning_rate=0.1, where="test")
    with pytest.raises(CheckpointError, match="doesn't fit the model"):
        restore_module("model", other, module_tensors("model", model))
    with pytest.raises(CheckpointError, match="doesn't fit the optimiser's parameter 0"):
        restore_optimiser("o", make_optimiser([other], weight_decay=0.1), optimiser_tensors("o", optimiser))
