"""``recsys-llm text pretrain`` on a repository: what it reads, what it leaves, and what a SIGKILL costs."""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from datetime import timedelta

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from recsys_llm.cli import app
from recsys_llm.commands import text_training
from recsys_llm.commands.text_training import domain_texts, pretrain_encoder
from recsys_llm.commands.text_training_report import training_bar
from recsys_llm.config import load_config
from recsys_llm.errors import CheckpointError, ConfigError, TrainingError
from recsys_llm.text import TextEncoder
from recsys_llm.text.manifest import MANIFEST, EncoderManifest
from recsys_llm.text.masked_language_model import MaskedLanguageModel
from recsys_llm.text.pretraining_settings import PretrainingConfig, PretrainingProgress
from recsys_llm.timestamps import now
from tests.builders import config_for, hours, write_interactions, write_items, write_tags

UNTIL = hours(100)
QUICK = PretrainingConfig(epochs=2, batch_tokens=128, learning_rate=2e-3, head_steps=3, save_every=3)
NAMES = ["Toy Story", "Two siblings find a game", "White heart holder", "A lazy fox", "Set of boxes", "A new spaceman"]
BEFORE = [
    (f"i{place}", None if place % 5 == 0 else hours(place), f"{NAMES[place % 6]} {place}", "") for place in range(40)
]
WORDS = [("u1", "a magical game", hours(3)), ("u1", "dogs", hours(1)), ("u2", "cowboy", hours(99.9))]
LATER = [
    ("late1", UNTIL, "Exactly then", ""),
    ("late2", hours(200), "Much later", ""),
    ("i3", hours(101), "New words", ""),
]
LATER_WORDS = [("u1", "spoiler alert", UNTIL), ("u3", "another fox", hours(300))]


@pytest.fixture
def small_bert(make_model):
    return make_model("bert", initializer_range=0.05)


@pytest.fixture
def make_folder(tmp_path, small_bert):
    def make(name, items=BEFORE, words=WORDS):
        folder = tmp_path / name
        write_items(folder, items)
        write_interactions(folder, [])
        write_tags(folder, words)
        config_for(folder, f"text_encoders:\n  tiny_v1: {{model: {small_bert}, max_tokens: 24}}\n", words=True)
        return folder

    return make


def trained(folder, out, **others):
    arguments = {"until": UNTIL, "out": out, "settings": QUICK, "device": "cpu", **others}
    return pretrain_encoder(folder, "tiny_v1", **arguments)


def weights(directory):
    return (directory / "model.safetensors").read_bytes()


def test_texts_of_items_and_words_before_the_cut_off(make_folder):
    config = load_config(make_folder("one", BEFORE[:2] + LATER, WORDS + LATER_WORDS))
    found = list(domain_texts(config, config.text_encoders["tiny_v1"], until=UNTIL))
    assert found == [
        "Toy Story 0. About Toy Story 0.",
        "Two siblings find a game 1. About Two siblings find a game 1.",
        "a magical game. dogs",
        "cowboy",
    ]


def test_the_output_is_an_encoder_that_knows_how_it_came_to_be(make_folder, tmp_path, small_bert):
    found = trained(make_folder("one"), tmp_path / "out")
    encoder = TextEncoder.load(tmp_path / "out", device="cpu", max_tokens=24)
    assert encoder.trained_until == UNTIL
    assert encoder.encode(["a fox"]).shape == (1, 32)
    manifest = EncoderManifest.read(tmp_path / "out")
    assert manifest == found.manifest
    assert (manifest.kind, manifest.base, manifest.settings["max_tokens"]) == ("pretrained", str(small_bert), 24)
    assert manifest.scores["perplexity"]["after"] < manifest.scores["perplexity"]["before"]
    assert len(manifest.scores["losses"]) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "out"]


def test_what_comes_at_or_after_the_cut_off_changes_nothing(make_folder, tmp_path):
    trained(make_folder("past"), tmp_path / "a")
    trained(make_folder("whole", BEFORE + LATER, WORDS + LATER_WORDS), tmp_path / "b")
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    manifests = [json.loads((tmp_path / name / MANIFEST).read_text()) for name in "ab"]
    assert manifests[0] == manifests[1]
    trained(make_folder("other", BEFORE, WORDS[:1]), tmp_path / "c")
    assert weights(tmp_path / "a") != weights(tmp_path / "c")


RUN = """
import os, signal, sys
from pathlib import Path
import torch
from recsys_llm.timestamps import as_utc
from recsys_llm.commands.text_training import pretrain_encoder
from recsys_llm.text.pretraining_settings import PretrainingConfig, PretrainingProgress
from datetime import datetime

torch.set_num_threads(1)
folder, out, until, settings, step = sys.argv[1:]

def kill(report):
    if report.phase == "encoder" and report.step == int(step):
        os.kill(os.getpid(), signal.SIGKILL)

pretrain_encoder(
    Path(folder), "tiny_v1", until=datetime.fromisoformat(until), out=Path(out), settings=eval(settings), device="cpu",
    progress=kill,
)
"""


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_a_killed_training_ends_with_the_weights_of_an_undisturbed_one(make_folder, tmp_path):
    folder, out = make_folder("one"), tmp_path / "out"
    trained(folder, tmp_path / "calm")
    arguments = [str(folder), str(out), UNTIL.isoformat(), repr(QUICK), "11"]
    done = subprocess.run(
        [sys.executable, "-c", RUN, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not out.exists()
    assert (tmp_path / "out.partial" / "state.json").is_file()
    steps = []
    trained(folder, out, progress=lambda report: steps.append(report.step))
    assert 1 < steps[0] <= 11
    assert weights(out) == weights(tmp_path / "calm")
    assert (out / MANIFEST).read_bytes() == (tmp_path / "calm" / MANIFEST).read_bytes()
    assert not (tmp_path / "out.partial").exists()


class Stop(Exception):
    pass


def stopped(folder, out):
    def stop(report):
        if (report.phase, report.step) == ("encoder", 5):
            raise Stop

    with pytest.raises(Stop):
        trained(folder, out, progress=stop)


def test_a_damaged_state_is_refused_and_restart_starts_again(make_folder, tmp_path):
    folder, out = make_folder("one"), tmp_path / "out"
    stopped(folder, out)
    state = next((tmp_path / "out.partial").glob("*.safetensors"))
    state.write_bytes(state.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="altered or truncated since it was saved; start the training again"):
        trained(folder, out)
    steps = []
    trained(folder, out, resume=False, progress=lambda report: steps.append((report.phase, report.step)))
    assert steps[0] == ("head", 1)
    assert out.is_dir()


def test_a_loss_that_is_not_finite_leaves_the_older_encoder(make_folder, tmp_path, monkeypatch):
    folder, out = make_folder("one"), tmp_path / "out"
    trained(folder, out)
    before = weights(out)
    monkeypatch.setattr(MaskedLanguageModel, "loss", lambda self, batch: self(batch).sum() * float("nan"))
    with pytest.raises(TrainingError, match="expected a finite held-out loss, found nan"):
        trained(folder, out, settings=PretrainingConfig(**{**QUICK.identity(), "seed": 5}))
    assert weights(out) == before


def test_what_can_not_be_trained_is_refused_at_once(make_folder, tmp_path, small_bert, monkeypatch):
    monkeypatch.setattr(text_training, "pretrain", lambda *_, **__: pytest.fail("it began to train"))
    folder, out = make_folder("one"), tmp_path / "out"
    with pytest.raises(ConfigError, match="unknown text encoder 'tiny'; did you mean 'tiny_v1'"):
        pretrain_encoder(folder, "tiny", until=UNTIL, out=out)
    with pytest.raises(ConfigError, match="expected a time that has passed"):
        trained(folder, out, until=now() + timedelta(minutes=1))
    with pytest.raises(CheckpointError, match="is the encoder that training starts from"):
        trained(folder, small_bert)
    out.mkdir()
    (out / "notes.txt").touch()
    with pytest.raises(CheckpointError, match="was not trained here"):
        trained(folder, out)


def test_a_base_that_was_trained_later_is_refused(make_folder, tmp_path, small_bert):
    base = shutil.copytree(small_bert, tmp_path / "base")
    EncoderManifest("finetuned", "x", UNTIL + timedelta(seconds=1), {}, {}).write(base)
    folder = make_folder("one")
    config_for(folder, f"text_encoders:\n  tiny_v1: {{model: {base}, max_tokens: 24}}\n")
    with pytest.raises(ConfigError, match="was itself trained on what came before"):
        trained(folder, tmp_path / "out")
    assert trained(folder, tmp_path / "out", until=UNTIL + timedelta(seconds=1)).manifest.kind == "pretrained"


def test_the_command_prints_and_writes_its_figures(make_folder, tmp_path):
    folder, report = make_folder("one"), tmp_path / "report.json"
    options = ["--epochs", "1", "--batch-tokens", "256", "--head-steps", "2", "--device", "cpu", "--json", str(report)]
    arguments = ["text", "pretrain", "tiny_v1", "--until", "2024-01-05T04:00", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*arguments, "-C", str(folder), *options], catch_exceptions=False)
    assert done.exit_code == 0
    assert "epoch 1: loss " in done.stdout
    assert "perplexity on held-out texts, untrained head" in done.stdout
    content = json.loads(report.read_text())
    names = [result["name"] for result in content["results"]]
    assert names == ["perplexity_untrained_head", "perplexity_before", "perplexity_after", "epoch_1", "training"]
    assert (content["command"], content["trained_until"]) == ("text pretrain", UNTIL.isoformat())


def test_a_terminal_shows_loss_rate_and_perplexity_and_a_pipe_nothing():
    for terminal in (True, False):
        written = io.StringIO()
        with training_bar(Console(file=written, force_terminal=terminal, width=120)) as show:
            show(PretrainingProgress("encoder", 1, 2, 1, 3.5, 100))
            show(PretrainingProgress("encoder", 2, 2, 1, 3.25, 100, held_out_loss=math.log(20)))
        found = written.getvalue()
        assert ("loss 3.250" in found, "tokens/s" in found, "perplexity 20.00" in found) == (terminal,) * 3
