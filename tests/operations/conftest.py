"""A repository over our Redis store, or over sqlite, with statistics of users and items in many small parts."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import redis

from recsys_llm.commands.repository import init_repository
from recsys_llm.producers.user_statistics import UserStatistics
from recsys_llm.timestamps import now
from tests.services import redis_server
from tests.workspace import CHEAP_VIEWS, apply, materialize, use_redis

FORGOTTEN = "u00007"


@pytest.fixture(scope="module")
def server():
    with redis_server() as server:
        yield server


@pytest.fixture(scope="module", params=["sqlite", "redis"])
def applied(request, tmp_path_factory, simulated_data, server) -> Path:
    """An applied repository, whose data folder is kept aside; its tables are copies that a test may change."""
    folder = tmp_path_factory.mktemp("operations")
    shutil.copytree(simulated_data, folder / "tables")
    target = init_repository(folder / "feature_repo", data=folder / "tables")
    if request.param == "redis":
        use_redis(target, server.url)
    apply(target)
    shutil.copytree(target / "data", folder / "applied")
    return target


@pytest.fixture
def repository(applied, simulated_data, server, monkeypatch) -> Path:
    """The repository, materialised anew, in parts of 200 rows."""
    monkeypatch.setattr(UserStatistics, "chunk_rows", 200)
    shutil.rmtree(applied / "data")
    shutil.copytree(applied.parent / "applied", applied / "data")
    shutil.copytree(simulated_data, applied.parent / "tables", dirs_exist_ok=True)
    with redis.Redis.from_url(server.url) as admin:
        admin.flushall()
        admin.config_set("maxmemory-policy", "noeviction")
    materialize(applied, *CHEAP_VIEWS, end=now())
    return applied
