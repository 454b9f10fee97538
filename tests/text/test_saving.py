"""A trained encoder is a transformers model directory that TextEncoder loads; nothing foreign is ever overwritten."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pytest
import torch

from recsys_llm.errors import CheckpointError
from recsys_llm.text import TextEncoder, resolve_model
from recsys_llm.text.loading import load_backbone
from recsys_llm.text.manifest import MANIFEST, EncoderManifest
from recsys_llm.text.saving import save_encoder
from tests.models import CORPUS

UNTIL = datetime(2024, 6, 1, tzinfo=UTC)
KINDS = ["bert", "distilbert", "roberta", "xlm-roberta", "mpnet", "electra"]


def manifest(**scores) -> EncoderManifest:
    return EncoderManifest("pretrained", "base", UNTIL, {"epochs": 1}, scores)


def save(directory, target, change=0.0, **scores):
    files = resolve_model(directory)
    model = load_backbone(files, device=torch.device("cpu"))
    with torch.no_grad():
        model.get_input_embeddings().weight.add_(change)
    save_encoder(target, model, files, manifest(**scores))


def encode(directory):
    return TextEncoder.load(directory, device="cpu", max_tokens=32).encode(CORPUS)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_gives_the_same_vectors(make_model, tmp_path, kind):
    directory = make_model(kind)
    save(directory, tmp_path / "deep" / "saved")
    np.testing.assert_array_equal(encode(directory), encode(tmp_path / "deep" / "saved"))
    assert EncoderManifest.read(tmp_path / "deep" / "saved") == manifest()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["saved"]
    assert len({path.stat().st_mode for path in (tmp_path / "deep" / "saved").iterdir()}) == 1


def test_the_tokenizer_is_copied_and_no_pooler_is_saved(tiny_bert, tmp_path):
    save(tiny_bert, tmp_path / "saved")
    for file in resolve_model(tiny_bert).tokenizer:
        assert (tmp_path / "saved" / file.name).read_bytes() == file.read_bytes()
    model = load_backbone(resolve_model(tiny_bert), device=torch.device("cpu"))
    assert any("pooler" in name for name in model.state_dict())
    assert b"pooler" not in (tmp_path / "saved" / "model.safetensors").read_bytes()


def test_equal_weights_are_equal_bytes(tiny_bert, tmp_path):
    for name in ("one", "other"):
        save(tiny_bert, tmp_path / name)
    assert (tmp_path / "one" / MANIFEST).read_bytes() == (tmp_path / "other" / MANIFEST).read_bytes()


def test_an_older_one_is_replaced(tiny_bert, tmp_path):
    target = tmp_path / "saved"
    target.mkdir()
    save(tiny_bert, target, run=1)
    save(tiny_bert, target, change=0.5, run=2)
    assert EncoderManifest.read(target).scores == {"run": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_somebody_elses_directory_is_refused(tiny_bert, make_model, tmp_path):
    other = make_model("bert", seed=3)
    before = sorted(path.name for path in other.iterdir())
    with pytest.raises(CheckpointError, match="exists and holds no recsys_llm.json"):
        save(tiny_bert, other)
    with pytest.raises(CheckpointError, match="is the encoder that training starts from"):
        save(tiny_bert, tiny_bert)
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="is a file"):
        save(tiny_bert, tmp_path / "file")
    assert sorted(path.name for path in other.iterdir()) == before


def test_a_failure_leaves_the_older_one(tiny_bert, tmp_path, monkeypatch):
    target = tmp_path / "saved"
    save(tiny_bert, target, run=1)

    def fail(self, directory):
        raise OSError("disk full")

    monkeypatch.setattr(EncoderManifest, "write", fail)
    with pytest.raises(OSError, match="disk full"):
        save(tiny_bert, target, change=0.5, run=2)
    assert EncoderManifest.read(target).scores == {"run": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]
