"""`feast materialize` on a Ray cluster of two workers: the same rows as without, and the same failures."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import yaml

pytest.importorskip("ray", reason="the extra `ray` is not installed")

from recsys_llm import schema
from recsys_llm.engine.ray_worker import ComputeWorker
from recsys_llm.errors import ModelError
from recsys_llm.retrieval import open_store
from recsys_llm.timestamps import now
from tests.engine.ray_cluster import local_cluster
from tests.workspace import make_repository, materialize, offline, online

VIEWS = (schema.ITEM_TEXT_EMBEDDING, schema.USER_STATS)


@pytest.fixture(scope="module")
def cluster():
    with local_cluster(cpus=2):
        yield


@pytest.fixture(scope="module")
def repository(tmp_path_factory, simulated_data) -> Path:
    """A repository that computes on this process, with chunks of 8 rows, applied."""
    target = make_repository(tmp_path_factory.mktemp("ray") / "feature_repo", simulated_data)
    file = target / "recsys_llm.yaml"
    file.write_text(file.read_text() + "chunk_rows: 8\n")
    return target


def use_ray(repository: Path) -> None:
    file = repository / "feature_store.yaml"
    settings = yaml.safe_load(file.read_text())
    settings["batch_engine"] |= {"executor": "ray", "min_workers": 2, "max_workers": 2}
    file.write_text(yaml.safe_dump(settings))


def parts(repository: Path, view: str) -> int:
    return len(list((repository / "data" / "features" / view).glob("part-*.parquet")))


def dying_worker(marker: Path) -> type[ComputeWorker]:
    """Return a worker of which the first to compute its third chunk is killed in the middle of it."""

    class DyingWorker(ComputeWorker):  # in here, so that Ray sends it with the marker
        chunks = 0

        def compute(self, rows, events):
            self.chunks += 1
            if self.chunks == 3:
                with contextlib.suppress(FileExistsError):
                    marker.touch(exist_ok=False)
                    os.kill(os.getpid(), signal.SIGKILL)
            return super().compute(rows, events)

    return DyingWorker


@pytest.mark.faults
def test_rows_are_those_of_the_local_executor_though_a_worker_is_killed(
    tmp_path, simulated_data, repository, cluster, monkeypatch
):
    end = now()
    materialize(repository, *VIEWS, end=end)
    other = make_repository(tmp_path / "feature_repo", simulated_data)
    (other / "recsys_llm.yaml").write_text((repository / "recsys_llm.yaml").read_text())
    use_ray(other)
    monkeypatch.setattr("recsys_llm.engine.engine.ComputeWorker", dying_worker(tmp_path / "died"))
    materialize(other, *VIEWS, end=end)
    assert (tmp_path / "died").exists()
    assert parts(other, schema.ITEM_TEXT_EMBEDDING) == parts(repository, schema.ITEM_TEXT_EMBEDDING) > 2
    for view in VIEWS:
        expected, found = offline(repository, view), offline(other, view)
        vectors = [name for name in expected.columns if name == schema.EMBEDDING]
        for name in set(expected.columns) - set(vectors):
            assert expected[name].map(repr).tolist() == found[name].map(repr).tolist(), (view, name)
        for name in vectors:
            np.testing.assert_allclose(np.stack(expected[name]), np.stack(found[name]), atol=1e-6)
        keys = expected.iloc[:, 0].unique().tolist()
        one, two = online(repository, view, keys), online(other, view, keys)
        assert {name: one[name] for name in one if name not in vectors} == {
            name: two[name] for name in two if name not in vectors
        }


class FailingWorker(ComputeWorker):
    def compute(self, rows, events):
        raise ModelError("out of luck")


def test_a_worker_s_failure_reaches_feast_and_its_watermark_stays(repository, cluster, monkeypatch):
    use_ray(repository)
    monkeypatch.setattr("recsys_llm.engine.engine.ComputeWorker", FailingWorker)
    with pytest.raises(ModelError, match="out of luck"):
        materialize(repository, schema.ITEM_STATS, end=now())
    assert open_store(repository).get_feature_view(schema.ITEM_STATS).materialization_intervals == []
    assert parts(repository, schema.ITEM_STATS) == 0
