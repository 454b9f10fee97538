"""A machine that leaves a Ray cluster in the middle of a run: it costs the chunks that it had, and nothing else."""

from __future__ import annotations

import pyarrow as pa
import pytest

pytest.importorskip("ray", reason="the extra `ray` is not installed")

from recsys_llm.engine.ray_executor import CHUNKS_PER_WORKER, RayExecutor, RayPool
from recsys_llm.errors import ExecutorError
from recsys_llm.producers.base import Due
from tests.engine.ray_cluster import head_of_a_cluster
from tests.engine.ray_workers import LengthWorker

pytestmark = pytest.mark.faults

TEXTS = [f"{number:03d}" + "x" * (number % 7) for number in range(40)]


MACHINE = {"num_cpus": 1, "object_store_memory": 80_000_000}


@pytest.fixture(scope="module")
def head():
    with head_of_a_cluster() as head:
        yield head


@pytest.fixture
def cluster(head):
    """Two machines of one CPU each."""
    while len(head.worker_nodes) < 2:
        head.add_node(**MACHINE)
    return head


def due():
    for text in TEXTS:
        yield Due(pa.record_batch({"text": pa.array([text, "slow"])}))


def executor(folder, **pool) -> RayExecutor:
    return RayExecutor("v", RayPool(**pool), LengthWorker, (str(folder),), "f1")


def test_a_lost_machine_costs_only_its_chunks(cluster, tmp_path):
    found, nodes = [], list(cluster.worker_nodes)
    for done, features in executor(tmp_path, min_workers=2, max_workers=2)(due()):
        found.append((done.rows.column("text")[0].as_py(), features.column("length")[0].as_py()))
        if len(found) == 4:
            cluster.remove_node(nodes[0], allow_graceful=False)
    assert sorted(found) == [(text, len(text)) for text in TEXTS]
    again = len(list(tmp_path.glob("chunk-*"))) - len(TEXTS)
    assert 0 <= again <= CHUNKS_PER_WORKER


def test_a_run_waits_for_a_machine_when_all_are_lost(cluster, tmp_path):
    found = []
    for done, _ in executor(tmp_path, max_workers=1)(due()):
        found.append(done.rows.column("text")[0].as_py())
        if len(found) == 4:
            for node in list(cluster.worker_nodes):
                cluster.remove_node(node, allow_graceful=False)
            cluster.add_node(**MACHINE)
    assert sorted(found) == TEXTS


def test_a_cluster_without_machines_says_so(cluster, tmp_path):
    with pytest.raises(ExecutorError, match="no worker started within 2 s"):
        for _ in executor(tmp_path, max_workers=1, start_seconds=2.0)(due()):
            for node in list(cluster.worker_nodes):
                cluster.remove_node(node, allow_graceful=False)
