"""SIGKILL of the driver of a Ray run: its workers end, and the next run completes what it began."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
import yaml

pytest.importorskip("ray", reason="the extra `ray` is not installed")

from recsys_llm.engine import ray_executor
from recsys_llm.engine.ray_executor import CHUNKS_PER_WORKER
from recsys_llm.retrieval import open_store
from tests.faults.crashes import (
    POINTS,
    VIEW,
    ChunkCounter,
    Figures,
    begin_again,
    check,
    kill_and_check,
    parts,
    rows_in_parts,
    times,
)
from tests.faults.ray_cluster_process import Cluster, cluster_process
from tests.workspace import START, materialize, offline

pytestmark = pytest.mark.faults

RAY_FILE = "feature_store.ray.yaml"
DRIVER = f"""
import os, signal, sys
from datetime import datetime
from recsys_llm.producers import Parts
from recsys_llm.retrieval import open_store
from tests.workspace import START

writing = Parts.write

def write(self, table):
    name = writing(self, table)
    os.kill(os.getpid(), signal.SIGSTOP)
    return name

Parts.write = write
repository, end, view = sys.argv[1:]
store = open_store(repository, config_file="{RAY_FILE}")
store.materialize(START, datetime.fromisoformat(end), feature_views=[view])
"""
"""Materialises on the cluster, and stops itself after its first part."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with cluster_process(tmp_path_factory.mktemp("ray")) as cluster:
        yield cluster


@pytest.fixture
def repository(crash_repository, small_chunks):
    return crash_repository


@pytest.fixture
def on_ray(repository, cluster):
    """Materialise on the cluster, with one worker; only in a fork of a process that has never used Ray itself."""
    use_ray(repository, cluster)

    def run(end) -> None:
        # A cluster of Ray's own making asks for the token that it left in the home directory.
        os.environ["RAY_AUTH_MODE"] = "token"
        from ray._raylet import Config

        Config.initialize("")  # since Ray read it when it was imported
        open_store(repository, config_file=RAY_FILE).materialize(START, end, feature_views=[VIEW])

    return run


def use_ray(repository, cluster: Cluster) -> None:
    settings = yaml.safe_load((repository / "feature_store.yaml").read_text())
    settings["batch_engine"] |= {"executor": "ray", "ray_address": cluster.address, "max_workers": 1}
    (repository / RAY_FILE).write_text(yaml.safe_dump(settings))


def wait_until_stopped(driver: subprocess.Popen[str], seconds: float = 180.0) -> None:
    deadline = time.monotonic() + seconds
    while True:
        pid, status = os.waitpid(driver.pid, os.WUNTRACED | os.WNOHANG)
        if pid:
            assert os.WIFSTOPPED(status), f"the driver ended with {os.waitstatus_to_exitcode(status)} before its part"
            return
        assert time.monotonic() < deadline, "the driver wrote no part"
        time.sleep(0.05)


def wait_until_workers_are_gone(cluster: Cluster, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while cluster.workers():
        assert time.monotonic() < deadline, f"workers {cluster.workers()} outlived their driver"
        time.sleep(0.05)


@pytest.mark.parametrize("crash_repository", ["sqlite"], indirect=True)
def test_a_killed_driver_leaves_no_worker_and_loses_nothing(repository, cluster, capsys):
    moments = times(repository)
    middle, end = moments[len(moments) // 2], moments[-1]
    begin_again(repository, middle)
    before = len(parts(repository))
    materialize(repository, VIEW, end=end)
    expected, most = offline(repository, VIEW), len(parts(repository))
    begin_again(repository, middle)

    use_ray(repository, cluster)
    # A process of its own: a fork of one that has used Ray, as other tests do, waits for threads that it has not.
    command = [sys.executable, "-c", DRIVER, str(repository), end.isoformat(), VIEW]
    driver = subprocess.Popen(command, env=os.environ | {"RAY_AUTH_MODE": "token"}, text=True)
    try:
        wait_until_stopped(driver)
        assert cluster.workers()
        assert before < len(parts(repository)) < most
    finally:
        driver.kill()
        driver.wait()
    wait_until_workers_are_gone(cluster)
    whole = rows_in_parts(repository)
    capsys.readouterr()
    materialize(repository, VIEW, end=end)
    check(repository, expected, whole, capsys.readouterr().out, Figures(), "driver")


@pytest.mark.soak
def test_a_driver_killed_50_times(repository, cluster, on_ray, capsys, chunks, tmp_path, monkeypatch, request):
    sent = tmp_path / "sent"
    sent.mkdir()
    store = request.node.callspec.params["crash_repository"]
    kill_and_check(
        repository,
        points=POINTS,
        seed=8,
        capsys=capsys,
        chunks=chunks,
        run=on_ray,
        sent=ChunkCounter(sent, monkeypatch, ray_executor._Chunks, "take"),
        most_redone=CHUNKS_PER_WORKER,
        name=f"ray_{store}",
    )
    wait_until_workers_are_gone(cluster)
