"""SIGKILL anywhere in a materialisation, and several at once: nothing lost, nothing twice, nothing stale."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from recsys_llm import schema
from recsys_llm.retrieval import open_store
from tests.faults.crashes import POINTS, VIEW, begin_again, kill_and_check, newest, read, times
from tests.faults.processes import join, spawn
from tests.workspace import START, materialize, offline

pytestmark = pytest.mark.faults


@pytest.fixture
def repository(crash_repository, small_chunks):
    return crash_repository


def test_killed_anywhere(repository, capsys, chunks):
    kill_and_check(repository, points=8, seed=20261124, capsys=capsys, chunks=chunks)


@pytest.mark.soak
def test_killed_anywhere_50_times(repository, capsys, chunks, request):
    """With the Ray variants in test_driver_killed.py: 200 points over two stores and two executors."""
    store = request.node.callspec.params["crash_repository"]
    kill_and_check(repository, points=POINTS, seed=7, capsys=capsys, chunks=chunks, name=f"local_{store}")


@pytest.mark.parametrize("limit", [0, 4_096, 20_000])
def test_a_full_disk_loses_nothing(repository, limit):
    """RLIMIT_FSIZE stands for the disk: no file may grow beyond it, not the ledger's either."""
    moments = times(repository)
    begin_again(repository, moments[len(moments) // 2])

    def run_out_of_space() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        materialize(repository, VIEW, end=moments[-1])

    fails_and_recovers(repository, run_out_of_space, lambda: None)


@pytest.mark.parametrize("left", [0, 40_000])
def test_a_full_file_system_loses_nothing(repository, left):
    """Parts, ledger and registry (and sqlite's rows) on a tmpfs with so many bytes left."""
    moments = times(repository)
    begin_again(repository, moments[len(moments) // 2])
    data = repository / "data"
    with small_disk(data):
        fill(data / "filler", left)
        fails_and_recovers(repository, lambda: materialize(repository, VIEW, end=moments[-1]), (data / "filler").unlink)


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """Put what is in a folder onto a file system of 16 MB, whose content is gone afterwards."""
    aside = folder.with_name("aside")
    folder.rename(aside)
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        folder.rmdir()
        aside.rename(folder)
        pytest.skip(f"a tmpfs can't be mounted (that needs CAP_SYS_ADMIN): {done.stderr.strip()}")
    try:
        shutil.copytree(aside, folder, dirs_exist_ok=True)
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
        shutil.rmtree(aside)


def fill(file: Path, left: int) -> None:
    """Write a file that leaves so many bytes of its file system."""
    status = os.statvfs(file.parent)
    file.write_bytes(bytes(max(0, status.f_bavail * status.f_frsize - left)))


def fails_and_recovers(repository: Path, work: Callable[[], None], make_room: Callable[[], object]) -> None:
    """Run out of space: an error, the old rows are kept, and the next run completes."""
    end = times(repository)[-1]
    before, serving = offline(repository, VIEW), read(repository, list(newest(offline(repository, VIEW))))
    assert join(spawn(work))[0] == 1
    found = offline(repository, VIEW)
    kept = found.merge(before[[schema.USER_ID, schema.EVENT_TIMESTAMP]], on=[schema.USER_ID, schema.EVENT_TIMESTAMP])
    assert kept.map(repr).values.tolist() == before.map(repr).values.tolist()
    make_room()
    assert all(value >= serving[key] for key, value in read(repository, list(serving)).items())
    materialize(repository, VIEW, end=end)
    found = offline(repository, VIEW)
    assert len(found) > len(before)
    assert not found.duplicated([schema.USER_ID, schema.EVENT_TIMESTAMP]).any()
    assert read(repository, list(newest(found))) == newest(found)


def test_fifteen_concurrent_materialisations_of_one_view_keep_all_intervals(repository):
    moments = times(repository)
    ends = [moments[len(moments) * share // 16] for share in range(1, 16)]

    def several(number: int) -> None:
        for end in ends[number::3]:
            materialize(repository, VIEW, end=end)

    begin_again(repository, moments[0])
    before = open_store(repository).get_feature_view(VIEW).materialization_intervals
    children = [spawn(lambda number=number: several(number)) for number in range(3)]
    assert [join(child)[0] for child in children] == [0, 0, 0]
    after = open_store(repository).get_feature_view(VIEW).materialization_intervals
    assert sorted(set(after) - set(before)) == sorted((START, end) for end in ends)
    found = offline(repository, VIEW)
    assert not found.duplicated([schema.USER_ID, schema.EVENT_TIMESTAMP]).any()
    assert read(repository, list(newest(found))) == newest(found)


def test_an_interval_that_another_run_wrote_over_comes_back(repository):
    moments = times(repository)
    begin_again(repository, moments[0])
    store = open_store(repository)
    stale = store.get_feature_view(VIEW)
    materialize(repository, VIEW, end=moments[100])
    store.registry.apply_feature_view(stale, store.project)  # as Feast does when a run begins
    assert [end for _, end in open_store(repository).get_feature_view(VIEW).materialization_intervals] == [moments[0]]
    materialize(repository, VIEW, end=moments[200])
    ends = [end for _, end in open_store(repository).get_feature_view(VIEW).materialization_intervals]
    assert sorted(ends) == [moments[0], moments[100], moments[200]]


def test_sixteen_concurrent_applies_lose_nothing(repository):
    from feast import FeatureService

    def several(number: int) -> None:
        for place in range(4):
            store = open_store(repository)
            view = store.get_feature_view(VIEW)
            store.apply([FeatureService(name=f"service_{number}_{place}", features=[view])])

    children = [spawn(lambda number=number: several(number)) for number in range(4)]
    assert [join(child)[0] for child in children] == [0] * 4
    made = {service.name for service in open_store(repository).list_feature_services()}
    assert {f"service_{number}_{place}" for number in range(4) for place in range(4)} <= made
