"""`recsys-llm init`, `plan`, `rebuild`, `train`: what they make, and what they refuse."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
import yaml

from recsys_llm import __version__
from recsys_llm.cli import app
from recsys_llm.commands.plan import plan_view
from recsys_llm.commands.repository import init_repository
from recsys_llm.commands.views import rebuild_view
from recsys_llm.config import load_config
from recsys_llm.errors import ConfigError, DataError
from recsys_llm.timestamps import now
from tests.builders import hours, write_interactions, write_items, write_tags
from tests.command_line import run_main
from tests.workspace import START, make_repository, materialize


@pytest.fixture
def data(tmp_path) -> Path:
    folder = tmp_path / "tables"
    write_items(folder, [("i1", hours(0), "One", "Drama")])
    write_interactions(folder, [("u1", "i1", hours(1), 5.0, 2.5)])
    return folder


def test_init_names_the_columns_that_it_finds(tmp_path, data):
    write_tags(data, [("u1", "slow", hours(2))])
    sources = load_config(init_repository(tmp_path / "repo", data=data)).sources
    assert sources.items.parquet == str(data / "items.parquet")
    assert (sources.interactions.rating, sources.interactions.liked_from) == ("rating", 4.0)
    assert sources.interactions.price == "price"
    assert [words.text for words in sources.user_words] == ["tag"]
    assert (sources.users, sources.interactions.segment) == (None, None)


def test_init_takes_a_country_for_a_segment(tmp_path, data):
    users = pa.table({"user_id": ["u1"], "event_timestamp": [hours(1)], "country": ["DE"], "bio": ["Ann"]})
    pq.write_table(users, data / "users.parquet")
    made = load_config(init_repository(tmp_path / "one", data=data))
    assert made.sources.users is not None
    assert (made.sources.users.segment, made.sources.interactions.segment) == ("country", None)
    assert made.text_encoders["minilm_v1"].user.profile_template is None  # whose names and addresses are for you to say
    events = pq.read_table(data / "interactions.parquet")
    pq.write_table(events.append_column("country", pa.array(["DE"] * len(events))), data / "interactions.parquet")
    sources = load_config(init_repository(tmp_path / "two", data=data)).sources
    assert sources.users is not None
    assert (sources.users.segment, sources.interactions.segment) == (None, "country")


def test_init_takes_no_other_scale_for_stars(tmp_path, data):
    write_interactions(data, [("u1", "i1", hours(1), 1.0, None), ("u2", "i1", hours(1), 0.0, None)])
    interactions = load_config(init_repository(tmp_path / "repo", data=data)).sources.interactions
    assert (interactions.rating, interactions.liked_from) == ("rating", None)


def test_init_makes_a_registry_that_any_directory_can_use(tmp_path, data):
    made = init_repository(tmp_path / "repo", data=data)
    settings = yaml.safe_load((made / "feature_store.yaml").read_text())
    assert settings["registry"]["path"] == f"sqlite:///{made}/data/registry.db"


def test_init_refuses_what_it_would_overwrite(tmp_path, data):
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo" / "mine.py").touch()
    with pytest.raises(ConfigError, match="no empty directory"):
        init_repository(tmp_path / "repo", data=data)
    with pytest.raises(ConfigError, match="no empty directory"):
        init_repository(tmp_path / "repo" / "mine.py", data=data)


def test_init_makes_nothing_of_a_folder_without_tables(tmp_path, data):
    (data / "items.parquet").unlink()
    with pytest.raises(DataError, match=r"items\.parquet: not found"):
        init_repository(tmp_path / "repo", data=data)
    (data / "items.parquet").write_text("item_id,title")
    with pytest.raises(DataError, match="expected a parquet file"):
        init_repository(tmp_path / "repo", data=data)
    assert not (tmp_path / "repo").exists()


def test_the_installed_program_says_its_version_and_ends_a_mistake_in_one_line(data):
    program = str(Path(sys.executable).with_name("recsys-llm"))
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == __version__
    command = [program, "init", str(data), "--data", str(data)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no empty directory" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["init", "{root}", "--data", "{root}"], "no empty directory"),
        (["quickstart", "--data", "{root}/nowhere", "--workdir", "{root}/w"], "no such directory"),
        (["plan", "v", "--start", "soon", "-C", "{root}"], "expected a time such as"),
        (["train", "seqgan_v1", "--until", "2024-01-01", "-C", "{root}"], "recsys-llm init"),
    ],
)
def test_a_mistake_ends_in_one_line_and_exit_code_2(tmp_path, data, arguments, message):
    done = run_main(*(argument.format(root=tmp_path) for argument in arguments))
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_plan_and_rebuild_of_a_repository(tmp_path, data, capsys):
    repository = make_repository(tmp_path / "repo", data)
    counted = plan_view(repository, "user_stats", start=START, end=now())
    assert (counted.due, counted.computed) == (1, 1)
    materialize(repository, "user_stats", end=now())
    assert plan_view(repository, "user_stats", start=START, end=now()).skipped == 1
    rebuild_view(repository, "user_stats")
    materialize(repository, "user_stats", end=now())
    assert "1 recovered" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="did you mean 'user_stats'"):
        plan_view(repository, "user_stat", start=START, end=now())


WITHOUT_REGISTRY = {
    "migrate status",  # the journal, which is of all registries
    "text pretrain",
    "text finetune",
    "text evaluate",
}
"""Commands on a repository that open no registry."""


def test_every_command_on_a_repository_takes_the_file_that_is_named():
    def walk(command, path):
        if hasattr(command, "commands"):  # a group
            for name, inner in command.commands.items():
                yield from walk(inner, [*path, name])
        else:
            yield " ".join(path), {option for parameter in command.params for option in parameter.opts}

    options = dict(walk(typer.main.get_command(app), []))
    on_repository = {name for name, known in options.items() if "-C" in known}
    assert len(on_repository) > 15
    assert {name for name in on_repository if "-f" not in options[name]} == WITHOUT_REGISTRY


def test_every_command_reads_the_registry_of_the_file_that_is_named(tmp_path, data):
    repository = make_repository(tmp_path / "repo", data)
    materialize(repository, "user_stats", end=now())
    (repository / "feature_store.yaml").rename(repository / "feature_store.prod.yaml")
    where = ["-C", str(repository)]
    commands = {
        ("plan", "user_stats", "--start", "2020-01-01"): (0, "0 of 1 rows to compute"),
        ("compact", "user_stats"): (0, "user_stats: 1 parts are now 1"),
        ("repair", "user_stats"): (0, "published the newest of 1 stored rows"),
        ("explain", "user_stats", "u1"): (0, "user_stats"),
        ("forget", "--user", "u1"): (1, "1 rows"),
        ("rebuild", "user_stats"): (0, f"feast -c {repository} -f {repository}/feature_store.prod.yaml materialize"),
        ("train", "seqgan_v1", "--until", "2025-01-01"): (2, "run `feast materialize START END -v item_text_embedding"),
        ("doctor",): (1, "user_stats"),
    }
    for command, (code, said) in commands.items():
        without = run_main(*command, *where)
        assert without.returncode == 2 and "feature_store.yaml: not found" in without.stderr, (command, without)
        done = run_main(*command, *where, "-f", "feature_store.prod.yaml")
        assert (done.returncode, said in done.stdout + done.stderr) == (code, True), (command, done)
