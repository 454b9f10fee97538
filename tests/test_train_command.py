"""Training from a feature repository: one model, or one for each time slice; curves; what is refused."""

from __future__ import annotations

import csv
import json
import re
import shutil
from datetime import datetime
from functools import partial
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from recsys_llm import schema
from recsys_llm.cli import app
from recsys_llm.commands import train as training
from recsys_llm.commands.train import train_sequence_model, train_slices
from recsys_llm.errors import ConfigError
from recsys_llm.seqgan import Checkpoint
from recsys_llm.seqgan.rolling import RollingModel
from recsys_llm.timestamps import now
from tests.workspace import apply, make_repository, materialize, offline

QUICK = {
    "mle_epochs": 1,
    "adversarial_epochs": 1,
    "generator_steps": 2,
    "discriminator_steps": 2,
    "embedding_dim": 8,
    "hidden_dim": 8,
    "continuations": 4,
    "discriminator_dim": 8,
}


@pytest.fixture(scope="module")
def pristine(tmp_path_factory, simulated_data) -> Path:
    """A repository whose model is small and knows ids alone."""
    repository = make_repository(tmp_path_factory.mktemp("training") / "feature_repo", simulated_data)
    file = repository / "recsys_llm.yaml"
    content = yaml.safe_load(file.read_text())
    content["sequence_models"]["seqgan_v1"] |= {"training": QUICK, "item_vectors": None}
    file.write_text(yaml.safe_dump(content))
    return repository


@pytest.fixture
def repository(tmp_path, pristine) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "feature_repo"))


@pytest.fixture(scope="module")
def until(simulated_data) -> datetime:
    times = pq.read_table(simulated_data / "interactions.parquet").column("event_timestamp").to_pandas().sort_values()
    return times.iloc[len(times) * 9 // 10].to_pydatetime()


def change(repository: Path, **settings: object) -> None:
    file = repository / "recsys_llm.yaml"
    content = yaml.safe_load(file.read_text())
    content["sequence_models"]["seqgan_v1"]["training"] |= settings
    file.write_text(yaml.safe_dump(content))


def test_settings_of_the_repository_are_used_and_curves_are_written(repository, until):
    done = CliRunner().invoke(app, ["train", "seqgan_v1", "--until", until.isoformat(), "-C", str(repository)])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["trained_until"] == until.isoformat()
    directory = repository / "data" / "models" / "seqgan_v1"
    found = Checkpoint.load(directory)
    assert {name: found.manifest["config"][name] for name in QUICK} == QUICK
    with (directory / "curves.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    losses = found.manifest["losses"]
    assert [row["phase"] for row in rows] == ["mle", "discriminator", "discriminator", "adversarial"]
    assert float(rows[0]["loss"]) == losses["mle"]["loss"][0]
    assert float(rows[0]["ndcg_at_10"]) == losses["mle"]["ndcg_at_10"][0] and rows[0]["reward"] == ""
    assert float(rows[3]["entropy"]) == losses["adversarial"]["entropy"][0]
    assert (directory / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert not directory.with_name("seqgan_v1.partial").exists()


def test_a_setting_that_does_not_exist_is_refused_with_the_nearest(repository, until):
    change(repository, hiden_dim=8)
    with pytest.raises(ConfigError, match="seqgan_v1: unknown training setting 'hiden_dim'; did you mean 'hidden_dim'"):
        train_sequence_model(repository, "seqgan_v1", until=until)


def test_slices_are_trained_on_what_lies_before_them_and_make_the_rows_from_there_on(repository, until):
    command = ["seqgan", "backfill", "seqgan_v1", "--slices", "3", "--until", until.isoformat(), "-C", str(repository)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    models = RollingModel.load(repository / "data" / "models" / "seqgan_v1")
    start = datetime.fromisoformat(re.search(r"materialize (\S+) END", done.stdout)[1] + "+00:00")
    assert start < models.checkpoints[0].trained_until  # whose rows are stamped at it
    events = [checkpoint.manifest["events"] for checkpoint in models.checkpoints]
    assert len(events) == 3 and models.newest.trained_until == until
    assert events[0] == pytest.approx(events[2] / 3, rel=0.02) and events[1] == pytest.approx(
        events[2] * 2 / 3, rel=0.02
    )
    apply(repository)  # the copy's own parts
    materialize(repository, schema.USER_NEXT_ITEMS, schema.ITEM_NEXT_VECTORS, end=now())
    rows = offline(repository, schema.USER_NEXT_ITEMS)
    own = rows[~rows[schema.IS_FALLBACK]]
    cuts = [checkpoint.trained_until for checkpoint in models.checkpoints]
    assert set(own[schema.MODEL_TRAINED_UNTIL]) == {cut.isoformat() for cut in cuts}
    for stamp, made_by in zip(own[schema.EVENT_TIMESTAMP], own[schema.MODEL_TRAINED_UNTIL], strict=True):
        assert max(cut for cut in cuts if cut <= stamp).isoformat() == made_by
    vectors = offline(repository, schema.ITEM_NEXT_VECTORS)
    assert set(vectors[schema.EVENT_TIMESTAMP]) == set(cuts)


def test_an_interrupted_backfill_keeps_the_models_it_has(repository, until, monkeypatch):
    class Interrupted(Exception):
        pass

    real, trained = training.train, []

    def counting(*args, **settings):
        if len(trained) == 2:
            trained.append("interrupted")
            raise Interrupted
        found = real(*args, **settings)
        trained.append("kept" if found is settings["known"] else settings["until"])
        return found

    monkeypatch.setattr(training, "train", counting)
    with pytest.raises(Interrupted):
        train_slices(repository, "seqgan_v1", slices=3, until=until)
    assert not (repository / "data" / "models" / "seqgan_v1").exists()
    models = train_slices(repository, "seqgan_v1", slices=3, until=until)
    cuts = [checkpoint.trained_until for checkpoint in models.checkpoints]
    assert trained == [cuts[0], cuts[1], "interrupted", "kept", "kept", cuts[2]]
    assert [path.name for path in (repository / "data" / "models").iterdir()] == ["seqgan_v1"]
    with pytest.raises(ConfigError, match="exists; views hold its predictions"):
        train_slices(repository, "seqgan_v1", slices=3, until=until)
    again = train_slices(repository, "seqgan_v1", slices=2, until=until, overwrite=True)
    assert len(again.checkpoints) == 2
    one = train_sequence_model(repository, "seqgan_v1", until=until, overwrite=True)
    found = RollingModel.load(repository / "data" / "models" / "seqgan_v1")
    assert found.fingerprint == one.fingerprint == again.newest.fingerprint


def test_models_of_other_events_are_not_kept(repository, until, tmp_path):
    building = repository / "data" / "models" / "seqgan_v1.slices"
    train_slices(repository, "seqgan_v1", slices=2, until=until)
    shutil.move(repository / "data" / "models" / "seqgan_v1", building)  # as if the last step had not come
    (building / "slices.json").unlink()
    old = pq.read_table(_events(repository))
    renamed = old.set_column(
        old.column_names.index("item_id"), "item_id", pc.binary_join_element_wise("x", old["item_id"], "")
    )
    pq.write_table(renamed, tmp_path / "interactions.parquet")
    file = repository / "recsys_llm.yaml"
    content = yaml.safe_load(file.read_text())
    content["sources"]["interactions"]["parquet"] = str(tmp_path / "interactions.parquet")
    file.write_text(yaml.safe_dump(content))
    models = train_slices(repository, "seqgan_v1", slices=2, until=until)
    assert all(item.startswith("x") for one in models.checkpoints for item in one.vocabulary.item_ids)


def test_what_is_no_model_is_never_replaced(repository, until):
    file = repository / "recsys_llm.yaml"
    content = yaml.safe_load(file.read_text())
    content["sequence_models"]["seqgan_v1"]["checkpoint"] = "data"
    file.write_text(yaml.safe_dump(content))
    for train in (train_sequence_model, partial(train_slices, slices=2)):
        with pytest.raises(ConfigError, match="exists and is no model; name another directory"):
            train(repository, "seqgan_v1", until=until, overwrite=True)
    assert (repository / "data" / "models").is_dir()


def test_slices_agree_on_repeats_whatever_each_holds(repository, until, monkeypatch):
    monkeypatch.setattr("recsys_llm.seqgan.training.REPEATS_ARE_RARE", 0.0)  # repeats are common, says the first slice
    models = train_slices(repository, "seqgan_v1", slices=2, until=until)
    assert {one.filter_seen for one in models.checkpoints} == {False}
    content = yaml.safe_load((repository / "recsys_llm.yaml").read_text())
    content["sequence_models"]["seqgan_v1"]["filter_seen"] = True
    (repository / "recsys_llm.yaml").write_text(yaml.safe_dump(content))
    models = train_slices(repository, "seqgan_v1", slices=2, until=until, overwrite=True)
    assert {one.filter_seen for one in models.checkpoints} == {True}


def test_more_slices_than_times_are_refused(repository, until):
    with pytest.raises(ConfigError, match="expected 1 at most for 2 events .* found 2; ask for fewer"):
        first = pq.read_table(_events(repository)).column("event_timestamp").to_pandas().min()
        train_slices(repository, "seqgan_v1", slices=2, until=(first.to_pydatetime()).replace(microsecond=1))


def _events(repository: Path) -> str:
    return str(yaml.safe_load((repository / "recsys_llm.yaml").read_text())["sources"]["interactions"]["parquet"])
