"""The private servers that other tests rely on: they answer, they stop, and they leave nothing behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import redis

from tests import services
from tests.services import ServiceFailedError, ServiceMissingError, postgres_server, redis_server


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Folder that the servers' folders are made in; anyone may enter it, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp(prefix="recsys_llm_services_"))
    folder.chmod(0o755)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    shutil.rmtree(folder)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_redis_is_gone_after_a_failing_test(temporary: Path) -> None:
    with pytest.raises(RuntimeError, match="the test"), redis_server() as server:
        with redis.Redis.from_url(server.url) as client:
            assert client.set("a", "b") and client.get("a") == b"b"
        raise RuntimeError("the test")
    assert server.process.returncode is not None and not is_running(server.process.pid)
    assert list(temporary.iterdir()) == []


def test_a_frozen_redis_is_ended_too(temporary: Path) -> None:
    with redis_server() as server:
        server.process.send_signal(signal.SIGSTOP)
    assert not is_running(server.process.pid) and list(temporary.iterdir()) == []


@pytest.mark.parametrize("which", [0, -1], ids=["first binary", "last binary"])
def test_postgres_is_gone_after_a_failing_test(temporary: Path, monkeypatch: pytest.MonkeyPatch, which: int) -> None:
    found = services._postgres_binaries()
    if not found:
        pytest.skip("Postgres: no binary")
    monkeypatch.setattr(services, "_postgres_binaries", lambda: [found[which]])
    with pytest.raises(RuntimeError, match="the test"), postgres_server() as server:
        with psycopg.connect(server.url.replace("+psycopg", "", 1)) as connection:
            assert connection.execute("show server_encoding").fetchone() == ("UTF8",)
        raise RuntimeError("the test")
    assert not is_running(server.process.pid) and list(temporary.iterdir()) == []


def test_a_postgres_that_does_not_start_is_passed_over(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = services._postgres_binaries()
    if not found:
        pytest.skip("Postgres: no binary")
    broken = Path(tempfile.mkdtemp(dir=temporary)) / "package" / "pginstall" / "bin"
    broken.mkdir(parents=True)
    for name in ("initdb", "postgres"):
        (broken / name).write_text("#!/bin/sh\necho 'no luck'\nexit 1\n")
        (broken / name).chmod(0o755)
    monkeypatch.setattr(services, "_postgres_binaries", lambda: [broken, found[0]])
    with postgres_server() as server:
        assert server.process.poll() is None
    monkeypatch.setattr(services, "_postgres_binaries", lambda: [broken])
    with pytest.raises(ServiceFailedError, match="no luck"), postgres_server():
        pass


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "_postgres_binaries", list)
    with pytest.raises(ServiceMissingError, match="neither initdb on PATH nor the wheel"), postgres_server():
        pass
    monkeypatch.setattr(services.shutil, "which", lambda _: None)
    monkeypatch.setattr(services, "_package_folder", lambda _: None)
    with pytest.raises(ServiceMissingError, match="neither redis-server on PATH nor the wheel"), redis_server():
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="the parent's death is signalled on Linux only")
def test_redis_ends_when_the_test_process_is_killed(temporary: Path) -> None:
    code = (
        "import sys, time; from tests.services import redis_server\n"
        "with redis_server() as server: print(server.process.pid, flush=True); time.sleep(60)"
    )
    root = Path(__file__).parents[1]
    environment = {**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": str(root)}
    with subprocess.Popen([sys.executable, "-c", code], cwd=root, env=environment, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        pid = int(child.stdout.readline())
        assert is_running(pid)
        child.kill()
    deadline = time.monotonic() + 10
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(pid)
