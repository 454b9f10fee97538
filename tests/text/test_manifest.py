"""An encoder that was trained here is refused when a byte of it differs, and says from when on it may be used."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from recsys_llm.errors import CheckpointError
from recsys_llm.files import read_signed_json, signed_json
from recsys_llm.text import TextEncoder
from recsys_llm.text.manifest import MANIFEST, EncoderManifest

UNTIL = datetime(2024, 6, 1, tzinfo=UTC)


@pytest.fixture
def trained(tiny_bert, tmp_path):
    directory = shutil.copytree(tiny_bert, tmp_path / "trained")
    EncoderManifest("finetuned", str(tiny_bert), UNTIL, {"epochs": 1}, {"recall": 0.5}).write(directory)
    return directory


def load(directory):
    return TextEncoder.load(directory, device="cpu", max_tokens=64)


def test_what_is_written_is_read(trained):
    found = EncoderManifest.read(trained)
    assert (found.kind, found.trained_until, dict(found.scores)) == ("finetuned", UNTIL, {"recall": 0.5})
    assert load(trained).trained_until == UNTIL


def test_somebody_elses_model_has_none(tiny_bert):
    assert EncoderManifest.read(tiny_bert) is None
    assert load(tiny_bert).trained_until is None


def test_the_cut_off_is_part_of_the_fingerprint(tiny_bert, trained):
    fingerprints = {load(tiny_bert).fingerprint, load(trained).fingerprint}
    EncoderManifest("finetuned", "base", UNTIL + timedelta(days=1), {}, {}).write(trained)
    fingerprints.add(load(trained).fingerprint)
    assert len(fingerprints) == 3
    np.testing.assert_array_equal(load(tiny_bert).encode(["a fox"]), load(trained).encode(["a fox"]))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_one_changed_byte_is_refused(trained, name):
    content = bytearray((trained / name).read_bytes())
    content[len(content) // 2] ^= 1
    (trained / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{name}: altered or truncated since it was saved"):
        load(trained)


def test_a_truncated_or_missing_file_is_refused(trained):
    weights = trained / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="altered or truncated"):
        EncoderManifest.read(trained)
    (trained / "config.json").unlink()
    with pytest.raises(CheckpointError, match="config.json: missing; train the encoder again"):
        EncoderManifest.read(trained)


@pytest.mark.parametrize(
    "change", [{"format": 99}, {"trained_until": "soon"}, {"files": None}, {"trained_until": "2024-01-01T00:00:00"}]
)
def test_a_manifest_of_another_kind_is_refused(trained, change):
    content = read_signed_json((trained / MANIFEST).read_bytes())
    (trained / MANIFEST).write_bytes(signed_json({**content, **change}))
    with pytest.raises(CheckpointError, match=MANIFEST):
        EncoderManifest.read(trained)


def test_an_altered_manifest_is_refused(trained):
    text = (trained / MANIFEST).read_text()
    (trained / MANIFEST).write_text(text.replace('"trained_until": "20', '"trained_until": "19'))
    with pytest.raises(CheckpointError, match="altered or truncated since it was written"):
        EncoderManifest.read(trained)


def test_a_manifest_that_is_no_json_is_refused(trained):
    (trained / MANIFEST).write_text("{")
    with pytest.raises(CheckpointError, match="not readable"):
        load(trained)
