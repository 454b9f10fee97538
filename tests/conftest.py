"""Fixtures for everyone: real servers, real data sets, the simulated catalogue."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from recsys_llm.sources.simulated import write_simulated
from tests.models import make_model, reference, tiny_bert
from tests.services import ServiceMissingError, postgres_server, redis_server

__all__ = ["make_model", "reference", "tiny_bert"]

# Feast takes a folder for metrics when it is imported, which the conftest.py of a subfolder does before any hook runs.
# One of its own would be left behind by every process that is killed, and by every worker of xdist.
FEAST_METRICS = tempfile.mkdtemp(prefix="recsys_llm_metrics_")
os.environ["PROMETHEUS_MULTIPROCESS_DIR"] = os.environ["PROMETHEUS_MULTIPROC_DIR"] = FEAST_METRICS


def pytest_unconfigure() -> None:
    """Remove the folder for Feast's metrics."""
    shutil.rmtree(FEAST_METRICS)


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """URL of a real Redis: ``$REDIS_URL``, or a private one of this worker. Tests use key prefixes of their own."""
    if os.environ.get("REDIS_URL"):
        yield os.environ["REDIS_URL"]
        return
    try:
        with redis_server() as server:
            yield server.url
    except ServiceMissingError as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """SQLAlchemy URL of a real Postgres: ``$POSTGRES_URL``, or a private one of this worker."""
    if os.environ.get("POSTGRES_URL"):
        yield os.environ["POSTGRES_URL"]
        return
    try:
        with postgres_server() as server:
            yield server.url
    except ServiceMissingError as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="session")
def movielens_small() -> Path:
    """Folder of the real MovieLens latest-small data."""
    return _data_set("movielens_small")


@pytest.fixture(scope="session")
def online_retail() -> Path:
    """Folder of the real Online Retail data."""
    return _data_set("online_retail")


@pytest.fixture(scope="session")
def simulated_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small simulated catalogue; read it, don't write into it."""
    return write_simulated(tmp_path_factory.mktemp("simulated"), users=60, items=120, days=120, seed=7)


def _data_set(name: str) -> Path:
    root = os.environ.get("RECSYS_LLM_DATA")
    if not root:
        pytest.skip(f"{name}: RECSYS_LLM_DATA is not set to a folder of data sets")
    folder = Path(root) / name
    if not (folder / "interactions.parquet").is_file():
        pytest.skip(f"{name}: RECSYS_LLM_DATA={root} has no {name}/interactions.parquet")
    return folder
