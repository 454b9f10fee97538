"""SIGKILL anywhere in a materialisation, and disks that are full: nothing lost, nothing twice, nothing stale."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import subprocess
import traceback
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial
from pathlib import Path

import pytest

from recsys_llm import schema
from recsys_llm.commands.feast_cli import FeastCommandError
from tests.faults.crashes import POINTS, VIEW, begin_again, kill_and_check, newest, read, times
from tests.faults.processes import join, spawn
from tests.workspace import START, feast, materialize, offline

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
        materialize_by_command(repository, moments[-1])

    fails_and_recovers(repository, run_out_of_space, lambda: None)


@pytest.mark.parametrize("left", [0, 40_000])
def test_a_full_file_system_loses_nothing(repository, left):
    """Parts, ledger and registry (and sqlite's rows) on a tmpfs with so many bytes left."""
    moments = times(repository)
    begin_again(repository, moments[len(moments) // 2])
    data = repository / "data"
    with small_disk(data):
        fill(data / "filler", left)
        run = partial(materialize_by_command, repository, moments[-1])
        fails_and_recovers(repository, run, (data / "filler").unlink)


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


def check_out_of_space(work: Callable[[], object]) -> None:
    """Run `feast materialize`, which must end with an error, and for want of space."""
    with pytest.raises(FeastCommandError, match="ended with 1") as failed:
        work()
    told = "".join(traceback.format_exception(failed.value)).lower()
    assert any(reason in told for reason in ("file too large", "no space left", "disk is full", "disk i/o error")), told


def materialize_by_command(repository: Path, end: datetime) -> None:
    """Run Feast's own command: its exit status is what scripts see."""
    feast(repository, "materialize", f"{START:%Y-%m-%dT%H:%M:%S}", f"{end:%Y-%m-%dT%H:%M:%S}", "-v", VIEW)


def fails_and_recovers(repository: Path, work: Callable[[], None], make_room: Callable[[], object]) -> None:
    """Run out of space: an error, the old rows are kept, and the next run completes."""
    end = times(repository)[-1]
    before, serving = offline(repository, VIEW), read(repository, list(newest(offline(repository, VIEW))))
    assert join(spawn(lambda: check_out_of_space(work)))[0] == 0
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
