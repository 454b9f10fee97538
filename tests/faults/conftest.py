"""Applied repositories to be killed in."""

from __future__ import annotations

import shutil

import pytest

from recsys_llm.commands.feast_cli import run_feast
from recsys_llm.commands.repository import init_repository
from recsys_llm.producers.user_statistics import UserStatistics
from tests.faults.crashes import CHUNK_ROWS, ChunkCounter
from tests.services import redis_server
from tests.workspace import use_redis


@pytest.fixture(scope="module", params=["sqlite", "redis"])
def crash_repository(request, tmp_path_factory, simulated_data):
    """An applied repository over either store."""
    target = init_repository(tmp_path_factory.mktemp("crash") / "feature_repo", data=simulated_data)
    if request.param == "sqlite":
        run_feast(target, "apply")
        shutil.copytree(target / "data", target / "applied")
        yield target
        return
    with redis_server() as server:
        use_redis(target, server.url)
        run_feast(target, "apply")
        shutil.copytree(target / "data", target / "applied")
        yield target


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(UserStatistics, "chunk_rows", CHUNK_ROWS)


@pytest.fixture
def chunks(tmp_path, monkeypatch):
    """Count the chunks that are computed in this process and its forks."""
    return ChunkCounter(tmp_path, monkeypatch)
