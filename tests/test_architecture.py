"""Imports go only downwards, the package's door is narrow, and the top level is what the README says."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import recsys_llm

PACKAGE = Path(recsys_llm.__file__).parent

BASE = {"errors", "files", "schema", "timestamps", "config", "bootstrap", "storage", "training_state", "registry_guard"}
BASE |= {"metrics", "logs", "passwords", "registry_schema", "registry_rows"}
BASE |= {"part_names", "databases", "redis_errors"}
WRITE = {"sources", "text", "seqgan", "producers", "engine"}
READ = {"retrieval", "ranking"}
TOP = {"streaming", "commands", "bench", "cli", "cli_options"}

ALLOWED = {
    "errors": set(),
    "files": set(),
    "metrics": {"errors"},
    "logs": {"passwords"},
    "part_names": {"errors", "files"},
    "passwords": {"errors"},
    "databases": set(),
    "redis_errors": set(),
    "schema": set(),
    "timestamps": {"errors"},
    "config": {"errors", "passwords", "schema", "timestamps"},
    "bootstrap": {"errors"},
    "storage": {"errors", "schema"},
    "training_state": {"errors", "files"},
    "registry_guard": {"errors", "passwords", "registry_rows", "registry_schema"},
    "registry_rows": {"schema"},
    "registry_schema": {"errors", "passwords"},
    "stores": BASE,
    "sources": BASE,
    "text": BASE,
    "seqgan": BASE,
    "producers": BASE | {"sources", "text", "seqgan"},
    "engine": BASE | {"stores", "sources", "text", "seqgan", "producers"},
    "retrieval": BASE | {"stores"},
    "ranking": BASE | {"retrieval"},
    "streaming": BASE | {"stores"} | WRITE | READ,
    "bench": BASE | {"stores"} | WRITE | READ | {"streaming"},
    "cli_options": {"errors", "timestamps"},
    "commands": BASE | {"stores"} | WRITE | READ | {"bench", "cli_options"},
    "cli": BASE | {"stores"} | WRITE | READ | {"bench", "cli_options", "commands"},
}
"""What each part may import besides itself."""


def part_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_parts(file: Path) -> set[str]:
    """Return the parts of the package that a file imports anywhere, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "recsys_llm":
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("recsys_llm."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found.update(a.name.split(".")[1] for a in node.names if a.name.startswith("recsys_llm."))
    return found


FILES = sorted(
    file for file in PACKAGE.rglob("*.py") if part_of(file) != "__init__" and "_feature_repo" not in file.parts
)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_go_only_downwards(file):
    part = part_of(file)
    beyond = imported_parts(file) - ALLOWED[part] - {part}
    assert not beyond, (
        f"{file.relative_to(PACKAGE)} imports {sorted(beyond)}; {part} may import {sorted(ALLOWED[part])}"
    )


def test_write_and_read_never_meet():
    assert all(not ALLOWED[part] & READ for part in WRITE)
    assert all(not ALLOWED[part] & WRITE for part in READ)


@pytest.mark.parametrize("module", ["data_sources", "entities", "feature_services", "feature_views"])
def test_the_feature_repository_imports_only_the_schema(module):
    file = PACKAGE.parent / "feature_repo" / f"{module}.py"
    names = [
        node
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module == "recsys_llm"
    ]
    assert imported_parts(file) <= {"schema"}
    assert all(alias.name == "schema" for node in names for alias in node.names)


def test_public_names():
    assert recsys_llm.__all__ == [
        "FeatureBatch",
        "FeatureClient",
        "LookupClient",
        "TextEncoder",
        "TrainingSet",
        "__version__",
    ]
    for name in recsys_llm.__all__:
        assert getattr(recsys_llm, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        _ = recsys_llm.Nothing


def test_importing_the_package_is_light():
    heavy = (
        "import sys, recsys_llm.schema, recsys_llm.cli; "
        "print(*sorted({'torch', 'feast', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_no_file_is_longer_than_350_lines():
    long = {str(file.relative_to(PACKAGE)): n for file in FILES if (n := len(file.read_text().splitlines())) > 350}
    assert not long
