"""The pool of Ray workers, on a real local cluster of two CPUs: order, failures, deaths."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

pytest.importorskip("ray", reason="the extra `ray` is not installed")

from recsys_llm.engine import ray_executor
from recsys_llm.engine.ray_executor import CHUNKS_PER_WORKER, RayExecutor, RayPool
from recsys_llm.errors import ExecutorError, FingerprintError, ModelError
from recsys_llm.producers.base import Due
from tests.engine.ray_cluster import local_cluster
from tests.engine.ray_workers import BrokenWorker, DyingWorker, LengthWorker


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with local_cluster(cpus=2):
        yield


def chunks(*texts: str) -> list[Due]:
    return [Due(pa.record_batch({"text": pa.array([text])})) for text in texts]


def run(folder: Path, due, *, worker=LengthWorker, fingerprint="f1", **pool) -> dict[str, int]:
    executor = RayExecutor("v", RayPool(**pool), worker, (str(folder),), fingerprint)
    return {
        taken.rows.column("text")[0].as_py(): features.column("length")[0].as_py()
        for taken, features in executor(iter(due))
    }


def workers(folder: Path) -> int:
    return len(list(folder.glob("worker-*")))


def test_all_chunks_come_back_once(cluster, tmp_path):
    texts = ["x" * length for length in range(1, 21)]
    assert run(tmp_path, chunks(*texts)) == {text: len(text) for text in texts}
    assert len(list(tmp_path.glob("chunk-*"))) == 20


def test_nothing_to_do_starts_no_worker(cluster, tmp_path):
    assert run(tmp_path, []) == {}
    assert workers(tmp_path) == 0


def test_events_are_shared_by_the_chunks_of_a_batch(cluster, tmp_path):
    events = pa.record_batch({"n": pa.array(range(1000))})
    due = [Due(pa.record_batch({"text": pa.array([text])}), events) for text in ("a", "bb", "ccc")]
    assert run(tmp_path, due) == {"a": 1001, "bb": 1002, "ccc": 1003}


def test_more_workers_start_while_chunks_wait_and_no_more_than_allowed(cluster, tmp_path):
    due = [*chunks("slow"), *(Due(pa.record_batch({"text": pa.array([f"{n}", "slow"])})) for n in range(30))]
    assert len(run(tmp_path, due, min_workers=1, max_workers=2)) == 31
    assert workers(tmp_path) == 2
    computing = {file.name.split("-")[2] for file in tmp_path.glob("chunk-*")}
    assert len(computing) == 2


def test_chunks_are_drawn_only_as_workers_can_take_them(cluster, tmp_path):
    drawn = []

    def source():
        for number in range(50):
            drawn.append(number)
            yield chunks(f"{number}")[0]

    executor = RayExecutor("v", RayPool(max_workers=1), LengthWorker, (str(tmp_path),), "f1")
    for done, _ in enumerate(executor(source()), 1):
        assert len(drawn) <= done + CHUNKS_PER_WORKER + 1
    assert len(drawn) == 50


def test_a_typed_error_of_a_worker_arrives_as_it_is(cluster, tmp_path):
    with pytest.raises(ModelError, match="^the model can't take this$"):
        run(tmp_path, chunks("a", "raise", "b"))


def test_a_bug_in_a_worker_arrives(cluster, tmp_path):
    with pytest.raises(ZeroDivisionError, match="a bug"):
        run(tmp_path, chunks("a", "bug"))


@pytest.mark.faults
def test_a_worker_that_dies_costs_only_its_chunks(cluster, tmp_path):
    texts = ["a", "die", *(str(number) for number in range(10, 20))]
    assert run(tmp_path, chunks(*texts), max_workers=1) == {text: len(text) for text in texts}
    assert (tmp_path / "died").exists()
    assert workers(tmp_path) == 2  # another one took its place
    again = len(list(tmp_path.glob("chunk-*"))) - len(texts)
    assert 0 <= again <= CHUNKS_PER_WORKER


@pytest.mark.faults
def test_a_chunk_that_kills_every_worker_ends_the_run(cluster, tmp_path):
    with pytest.raises(ExecutorError, match="view v: a worker died and did so again after 3 retries"):
        run(tmp_path, chunks("a", "die always", "b"), max_workers=1)


@pytest.mark.faults
def test_a_worker_that_dies_whenever_it_is_made_ends_the_run(cluster, tmp_path):
    with pytest.raises(ExecutorError, match="view v: a worker died and did so again after 3 retries"):
        run(tmp_path, chunks("a"), worker=DyingWorker)
    assert workers(tmp_path) == 4


def test_a_worker_that_can_not_be_made_says_why(cluster, tmp_path):
    with pytest.raises(ExecutorError, match=r"(?s)could not load its model.*no weights here"):
        run(tmp_path, chunks("a"), worker=BrokenWorker)


def test_a_worker_with_another_model_is_refused(cluster, tmp_path):
    with pytest.raises(FingerprintError, match="a worker computes with fingerprint f1, this process with f2"):
        run(tmp_path, chunks("a"), fingerprint="f2")


def test_needs_that_no_machine_meets(cluster, tmp_path):
    with pytest.raises(ExecutorError, match=r"no worker started within 0 s; each needs 64.0 CPUs .*'CPU': 2.0"):
        run(tmp_path, chunks("a"), cpus_per_worker=64.0, start_seconds=0.2)


def test_without_ray_the_remedy_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(Exception, match=r"pip install 'recsys-llm\[ray\]'"):
        ray_executor._connected(RayPool())
