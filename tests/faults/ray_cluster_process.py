"""A Ray cluster in a process of its own, so that drivers can be killed and this process can fork."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

PROGRAM = """
import sys
import ray
from tests.engine.ray_cluster import local_cluster

with local_cluster(cpus=2):
    print(ray.get_runtime_context().gcs_address, flush=True)
    sys.stdin.read()
"""


@dataclass(frozen=True)
class Cluster:
    """A running cluster."""

    address: str
    pid: int

    def workers(self) -> list[int]:
        """Return the pids of processes that compute features."""
        found = []
        for process in psutil.Process(self.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):  # it has just ended
                if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::ComputeWorker"):
                    found.append(process.pid)
        return found


@contextlib.contextmanager
def cluster_process(folder: Path) -> Iterator[Cluster]:
    """Run a cluster of two CPUs; it ends when its standard input is closed, so also when this process dies."""
    with (folder / "cluster.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
        )
    assert process.stdin is not None and process.stdout is not None
    try:
        address = process.stdout.readline().decode().strip()
        assert address, (folder / "cluster.log").read_text()
        yield Cluster(address, process.pid)
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait()
