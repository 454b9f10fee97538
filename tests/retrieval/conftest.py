"""A repository that history is read from: applied once per module, its parts rewritten by each test."""

from __future__ import annotations

import pytest

from recsys_llm.retrieval import FeatureClient
from tests.retrieval.feast_repository import VIEWS, Repository, online_config


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    folder = tmp_path_factory.mktemp("history")
    return Repository(folder, online=online_config("sqlite", folder))


@pytest.fixture(scope="module")
def client(repository):
    with FeatureClient(store=repository.store) as client:
        yield client


@pytest.fixture
def nothing_stored(repository):
    """Start from empty parts."""
    for view in VIEWS:
        for file in repository.directory(view).glob("*.parquet"):
            file.unlink()
        repository.write(view, [])
