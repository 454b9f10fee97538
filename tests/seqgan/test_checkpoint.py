from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from recsys_llm.errors import CheckpointError
from recsys_llm.seqgan import Checkpoint, Histories, next_items

FILES = [
    "manifest.json",
    "vocabulary.json",
    "items.safetensors",
    "generator_mle.safetensors",
    "generator_adversarial.safetensors",
]


def test_what_was_saved_is_loaded(trained: Checkpoint, events: pa.Table, tmp_path: Path) -> None:
    trained.save(tmp_path / "model")
    torch.manual_seed(1)
    expected_draw = torch.rand(1)
    torch.manual_seed(1)
    loaded = Checkpoint.load(tmp_path / "model")
    assert torch.equal(torch.rand(1), expected_draw)
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == sorted(FILES)
    assert loaded.fingerprint == trained.fingerprint
    assert loaded.manifest == trained.manifest
    assert loaded.vocabulary.item_ids == trained.vocabulary.item_ids
    assert loaded.counts.tolist() == trained.counts.tolist()
    histories = Histories.from_interactions(events)
    for name in ("mle", "adversarial", "chosen"):
        ours, theirs = (
            next_items(one, histories, np.arange(0, 500, 7), 5, generator=name) for one in (trained, loaded)
        )
        assert np.array_equal(ours.item_ids, theirs.item_ids)
        assert np.array_equal(ours.log_probs, theirs.log_probs)
        assert ours.centroid is not None and theirs.centroid is not None
        assert np.array_equal(ours.centroid, theirs.centroid)


@pytest.mark.parametrize("name", FILES)
def test_one_altered_byte_is_refused(trained: Checkpoint, tmp_path: Path, name: str) -> None:
    trained.save(tmp_path / "model")
    content = (tmp_path / "model" / name).read_bytes()
    for place in (0, 1, len(content) // 3, len(content) // 2, len(content) - 1):
        altered = bytearray(content)
        altered[place] ^= 1
        (tmp_path / "model" / name).write_bytes(bytes(altered))
        with pytest.raises(CheckpointError, match=name):
            Checkpoint.load(tmp_path / "model")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_or_short_file_is_refused(trained: Checkpoint, tmp_path: Path, name: str) -> None:
    trained.save(tmp_path / "model")
    file = tmp_path / "model" / name
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=name):
        Checkpoint.load(tmp_path / "model")
    file.unlink()
    with pytest.raises(CheckpointError, match=name):
        Checkpoint.load(tmp_path / "model")


def test_saving_replaces_a_checkpoint_and_nothing_else(trained: Checkpoint, tmp_path: Path) -> None:
    trained.save(tmp_path / "model")
    (tmp_path / "model" / "vocabulary.json").write_text("[]")
    trained.save(tmp_path / "model")
    assert Checkpoint.load(tmp_path / "model").fingerprint == trained.fingerprint
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="is no checkpoint"):
        trained.save(tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "other"]
    assert (tmp_path / "other" / "notes.txt").read_text() == "mine"
