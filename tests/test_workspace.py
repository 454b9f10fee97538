"""Feast's command in the tests' process: each repository is read from its own files, and nothing is left behind."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from recsys_llm.commands.feast_cli import FeastCommandError
from recsys_llm.retrieval import open_store
from tests.workspace import apply, feast, make_repository


def test_each_repository_is_read_from_its_own_files(tmp_path, simulated_data):
    folder, path, modules = Path.cwd(), list(sys.path), set(sys.modules)
    one, two = (make_repository(tmp_path / name, simulated_data) for name in ("one", "two"))
    views = two / "feature_views.py"
    before = views.read_text()
    views.write_text(f'{before}\nuser_stats.tags["of"] = "two"\n')
    for repository in (one, two):  # the second within the second
        apply(repository)
    views.write_text(f'{before}\nuser_stats.tags["of"] = "TWO"\n')
    apply(two)
    assert open_store(two).get_feature_view("user_stats").tags["of"] == "TWO"
    assert "of" not in open_store(one).get_feature_view("user_stats").tags
    source = open_store(one).get_feature_view("user_stats").batch_source
    assert str(one) in source.path
    views.write_text(f"{before}\nimport nothing_like_it\n")
    with pytest.raises(FeastCommandError, match="ended with 1") as failure:
        apply(two)
    assert isinstance(failure.value.__cause__, ModuleNotFoundError)
    with pytest.raises(FeastCommandError, match="No such command"):
        feast(one, "aply")
    assert (Path.cwd(), sys.path) == (folder, path)
    assert not {"feature_views", "feature_services", "data_sources", "entities"} & (set(sys.modules) - modules)
