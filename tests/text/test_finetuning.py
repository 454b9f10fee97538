"""Fine-tuning: that it finds a hidden structure, keeps the start where it doesn't help, and reads nothing later."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from recsys_llm.cli import app
from recsys_llm.commands.text_finetuning import finetune_encoder, show_finetuning
from recsys_llm.commands.text_report import evaluate_encoders
from recsys_llm.errors import CheckpointError, ConfigError, LeakageError, TrainingError
from recsys_llm.text import TextEncoder
from recsys_llm.text.adapters import blend
from recsys_llm.text.evaluation import paired_interval
from recsys_llm.text.finetuning import finetune, fit
from recsys_llm.text.finetuning_settings import FinetuningConfig
from recsys_llm.text.manifest import EncoderManifest
from recsys_llm.text.model_files import resolve_model
from recsys_llm.text.objectives import Contrastive
from recsys_llm.text.tunable import TunableEncoder
from recsys_llm.timestamps import MICROSECOND, to_micros
from tests.builders import config_for, hours, write_interactions, write_items
from tests.text.planted import UNTIL, pairs_of, write_world

QUICK = FinetuningConfig(epochs=3, batch_size=32, learning_rate=2e-3, save_every=7, item_pairs=1500, user_pairs=300)
SHORT = replace(QUICK, epochs=2, item_pairs=300, user_pairs=50, patience=2)


def tuned(folder, out, settings=SHORT, **others):
    return finetune_encoder(folder, "tiny_v1", until=UNTIL, out=out, settings=settings, device="cpu", **others)


def weights(directory):
    return (directory / "model.safetensors").read_bytes()


@pytest.mark.parametrize("adapted", [{}, {"lora_rank": 4, "learning_rate": 6e-3}])
def test_a_hidden_structure_is_found_also_for_items_without_events(world, tmp_path, adapted):
    found = tuned(world, tmp_path / "out", replace(QUICK, epochs=10, patience=4, **adapted))
    assert found.manifest.scores["helped"]
    scores = evaluate_encoders(world, ["tiny_v1", str(tmp_path / "out")], until=UNTIL, device="cpu")
    frozen, better = scores.encoders.values()
    for metric in ("recall", "cold_recall"):
        assert paired_interval(frozen, better, metric).low > 0.15, metric
    assert better.mean("recall") > scores.baselines["co-occurrence"].mean("recall")


def test_categories_are_learned_beyond_a_linear_layer(make_model, tmp_path):
    folder = write_world(tmp_path / "many", make_model("bert"), per_code=40)
    settings = FinetuningConfig("category", epochs=6, batch_size=32, learning_rate=2e-3, patience=6)
    settings = replace(settings, validation_share=0.25)
    scores = tuned(folder, tmp_path / "out", settings).manifest.scores
    start, best = scores["epochs"][0], scores["epochs"][scores["chosen"]["epoch"]]
    assert best["micro_f1"] > start["micro_f1"] + 0.15
    assert set(best) == {"epoch", "loss", "micro_f1", "macro_f1", "recall_at_20", "ndcg_at_10"}
    assert scores["data"] == {"items": 320, "categories": 8, "labelled": 240}


def test_the_manifest_says_how_it_came_to_be(world, tmp_path, capsys):
    found = tuned(world, tmp_path / "out")
    manifest = EncoderManifest.read(tmp_path / "out")
    assert manifest == found.manifest
    assert (manifest.kind, manifest.trained_until) == ("finetuned", UNTIL)
    assert manifest.settings["max_tokens"] == 24
    assert [epoch["epoch"] for epoch in manifest.scores["epochs"]] == [0, 1, 2]
    assert manifest.scores["epochs"][0]["loss"] is None
    encoder = TextEncoder.load(tmp_path / "out", device="cpu", max_tokens=24)
    assert encoder.trained_until == UNTIL
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    show_finetuning(found, tmp_path, print)
    shown = capsys.readouterr().out
    assert "epoch 2: loss" in shown and "`model: out` in recsys_llm.yaml" in shown
    again = tuned(world, tmp_path / "again", start=tmp_path / "out")
    assert again.manifest.base == str(tmp_path / "out")
    with pytest.raises(LeakageError, match="was trained on what came before"):
        evaluate_encoders(world, [str(tmp_path / "out")], until=UNTIL - MICROSECOND, device="cpu")


def test_what_comes_at_or_after_the_cut_off_changes_nothing(make_model, world, tmp_path):
    past = tmp_path / "past"
    shutil.copytree(world, past)
    for name in ("items", "interactions"):
        table = pq.read_table(world / f"{name}.parquet")
        times = table.column("event_timestamp").cast("int64").to_numpy(zero_copy_only=False)
        kept = np.isnan(times.astype(float)) | (times < to_micros(UNTIL))
        pq.write_table(table.filter(kept), past / f"{name}.parquet")
    later = tmp_path / "later"
    shutil.copytree(past, later)
    items, events = (pq.read_table(past / f"{name}.parquet") for name in ("items", "interactions"))
    new_words = [(str(item), UNTIL, "spoiler spoiler", "x") for item in items["item_id"].to_pylist()]
    write_items(tmp_path / "more", [*new_words, ("new", hours(2000), "spoiler", "y")])
    rows = [(f"u{user}", "new", UNTIL, 5.0, None) for user in range(60)]
    write_interactions(tmp_path / "more", [*rows, ("late", "0-00", hours(1500), 5.0, None)])
    import pyarrow as pa

    for name, table in (("items", items), ("interactions", events)):
        more = pq.read_table(tmp_path / "more" / f"{name}.parquet").cast(table.schema)
        pq.write_table(pa.concat_tables([more, table]), later / f"{name}.parquet")
    one, other = tuned(past, tmp_path / "a"), tuned(later, tmp_path / "b")
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    assert one.manifest == other.manifest
    earlier = finetune_encoder(past, "tiny_v1", until=hours(900), out=tmp_path / "c", settings=SHORT, device="cpu")
    assert earlier.manifest.scores["epochs"] != one.manifest.scores["epochs"]


class StoppedError(Exception):
    """A training that was stopped from outside."""


def stop_at(step):
    def stop(progress):
        if progress.step == step:
            raise StoppedError

    return stop


@pytest.mark.parametrize("changed", [{}, {"lora_rank": 2}, {"objective": "category"}])
def test_a_stopped_training_ends_as_an_undisturbed_one(world, tmp_path, changed):
    settings = replace(SHORT, validation_share=0.25, batch_size=16, **changed)
    whole = tuned(world, tmp_path / "whole", settings)
    often = replace(settings, save_every=2)
    for step in (1, 5, 8):  # before the first state, after it, and in a resumed run
        with pytest.raises(StoppedError):
            tuned(world, tmp_path / "out", often, progress=stop_at(step))
        assert not (tmp_path / "out").exists()
    found = tuned(world, tmp_path / "out", often)
    assert weights(tmp_path / "out") == weights(tmp_path / "whole")
    assert found.manifest == whole.manifest
    assert not (tmp_path / "out.partial").exists()


def test_restarting_begins_anew(world, tmp_path):
    seen = []

    def stop(progress):
        seen.append(progress.step)
        if progress.step == 9:
            raise KeyboardInterrupt

    for resume in (True, False):
        with pytest.raises(KeyboardInterrupt):
            tuned(world, tmp_path / "out", replace(SHORT, save_every=2), progress=stop, resume=resume)
    assert seen == [*range(1, 10), *range(1, 10)]


class Scripted:
    """An objective whose validation scores are read from a list."""

    metric = "score"

    def __init__(self, scores, *, loss=None):
        self.texts = ["a fox", "the lazy dog"]
        self.head = torch.nn.Identity()
        self.scores = iter(scores)
        self.seen = []
        self.factor = loss

    def __len__(self):
        return 4

    def prepare(self, encoder, *, fit):
        pass

    def loss(self, encoder, rows):
        return encoder.encode(np.array([0, 1]))[:, 0].sum() * (1.0 if self.factor is None else self.factor)

    def validate(self, encoder):
        self.seen.append(encoder.top.trained_state())
        return {"score": next(self.scores)}

    def digest(self):
        return ""


SCRIPT = FinetuningConfig(train_layers=1, epochs=6, batch_size=2, learning_rate=1e-2, patience=2, dropout=0.0)


def scripted(tiny_bert, objective, settings=SCRIPT):
    encoder = TunableEncoder.load(
        resolve_model(tiny_bert),
        train_layers=1,
        rank=None,
        alpha=1.0,
        dropout=0.0,
        max_tokens=16,
        pooling="mean",
        normalize=True,
        device=torch.device("cpu"),
    )
    encoder.remember(objective.texts)
    return encoder, fit(encoder, objective, settings)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_training_stops_early_and_the_best_epoch_is_kept(tiny_bert):
    objective = Scripted([1.0, 2.0, 3.0, 2.0, 3.0])
    encoder, scores = scripted(tiny_bert, objective)
    assert [epoch["score"] for epoch in scores["epochs"]] == [1.0, 2.0, 3.0, 2.0, 3.0]
    assert scores["chosen"] == {"epoch": 2, "share": 1.0}
    assert same(encoder.top.trained_state(), objective.seen[2])
    assert not same(objective.seen[4], objective.seen[2])


def test_a_fine_tuning_that_does_not_help_returns_the_start_and_says_so(tiny_bert):
    objective = Scripted([2.0, 1.0, 2.0])
    encoder, scores = scripted(tiny_bert, objective)
    assert (scores["helped"], scores["chosen"]) == (False, {"epoch": 0, "share": 0.0})
    assert scores["interpolation"] == []
    assert same(encoder.top.trained_state(), objective.seen[0])
    assert not same(encoder.top.trained_state(), objective.seen[1])


def test_weights_between_start_and_best_are_tried(tiny_bert):
    objective = Scripted([1.0, 2.0, 0.0, 0.0, 2.5, 3.0, 1.0])
    encoder, scores = scripted(tiny_bert, objective, replace(SCRIPT, interpolate=True))
    assert [between["share"] for between in scores["interpolation"]] == [0.75, 0.5, 0.25]
    assert scores["chosen"] == {"epoch": 1, "share": 0.5}
    assert same(encoder.top.trained_state(), blend(objective.seen[0], objective.seen[1], 0.5))


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_ends_training(tiny_bert, factor):
    with pytest.raises(TrainingError, match=r"fine-tuning, step 1 of 12: expected a finite loss"):
        scripted(tiny_bert, Scripted([1.0], loss=factor))


def test_nothing_is_written_where_training_fails(world, tmp_path):
    with pytest.raises(TrainingError, match="expected"):
        tuned(world, tmp_path / "out", replace(SHORT, learning_rate=1e30))
    assert not (tmp_path / "out").exists()


def test_too_few_pairs_are_refused_with_the_number_needed(tmp_path, tiny_bert):
    write_items(tmp_path, [("a", None, "cowboy", "x"), ("b", None, "fox", "y")])
    write_interactions(tmp_path, [("u", item, hours(time), 5.0, None) for time, item in enumerate("abab")])
    config_for(tmp_path, f"text_encoders:\n  tiny_v1: {{model: {tiny_bert}, max_tokens: 24}}\n")
    with pytest.raises(TrainingError, match=r"at least 20 pairs .* and 20 later ones .*; found 2 and 1;"):
        tuned(tmp_path, tmp_path / "out")
    with pytest.raises(TrainingError, match=r"at least 20 items with a text and a category"):
        tuned(tmp_path, tmp_path / "out", replace(SHORT, objective="category"))


def test_targets_and_settings_are_checked_first(world, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(CheckpointError, match="was not trained here"):
        tuned(world, tmp_path / "mine")
    for settings, message in [
        ({"objective": "contrastiv"}, "did you mean 'contrastive'"),
        ({"temperature": 0.0}, "temperature: expected a number above 0, found 0.0"),
        ({"learning_rate": float("nan")}, "learning_rate: expected a number above 0"),
        ({"lora_rank": 0}, "lora_rank: expected 1 or more, found 0"),
        ({"validation_share": 0.5}, "validation_share: expected 0 to below 0.5"),
    ]:
        with pytest.raises(ConfigError, match=message):
            replace(SHORT, **settings)


def test_from_the_command_line(world, tmp_path):
    def run(*arguments):
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    until = UNTIL.isoformat()
    common = ["tiny_v1", "--until", until, "-C", world, "--device", "cpu", "--item-pairs", 300, "--user-pairs", 50]
    done = run("text", "finetune", *common, "--out", tmp_path / "out", "--epochs", 1, "--json", tmp_path / "f.json")
    assert done.exit_code == 0, done.output
    assert "epoch 0: the start" in done.output
    content = json.loads((tmp_path / "f.json").read_text())
    assert content["command"] == "text finetune"
    assert content["results"][0]["epoch"] == 0
    done = run(
        *("text", "evaluate", "tiny_v1", tmp_path / "out", "--until", until, "-C", world, "--device", "cpu"),
        *("--json", tmp_path / "e.json"),
    )
    assert done.exit_code == 0, done.output
    results = json.loads((tmp_path / "e.json").read_text())["results"]
    assert [result["name"] for result in results] == ["tiny_v1", str(tmp_path / "out"), "popularity", "co-occurrence"]
    assert "difference" in results[1]["metrics"]["recall_at_20"]
    with pytest.raises(ConfigError, match="expected a directory, or a name under text_encoders"):
        evaluate_encoders(world, ["tiny_v2"], until=UNTIL)
    with pytest.raises(TrainingError, match="expected users with a liked item"):
        evaluate_encoders(world, ["tiny_v1"], until=hours(5000), device="cpu")


def test_other_architectures_are_refused(make_model, world):
    _, pairs = pairs_of(world)
    with pytest.raises(TrainingError, match="found ElectraModel"):
        finetune(
            resolve_model(make_model("electra")),
            Contrastive(pairs, SHORT),
            replace(SHORT, max_tokens=16),
            device=torch.device("cpu"),
        )
