"""What a feature repository's Python files declare, under a given versions.yaml: what ``feast apply`` would apply.

Run as a process of its own, because Feast imports the files into the interpreter and never lets go of them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from recsys_llm import schema
from recsys_llm.errors import MigrationError

Reads = list[tuple[str, list[str]]]
"""The views of a service, each with the sorted names of its features; no names: all of them."""


def declared_services(repository: Path, versions: Mapping[str, str]) -> dict[str, Reads]:
    """Return what each service would read with ``versions`` in versions.yaml; the file itself is left alone.

    Raises
    ------
    MigrationError
        The Python files can't be imported; the message holds what Python said.
    """
    with TemporaryDirectory() as folder:
        answer = Path(folder) / "services.json"
        done = subprocess.run(
            [sys.executable, "-m", __name__, str(repository.resolve()), str(answer)],
            input=json.dumps(dict(versions)),
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONWARNINGS": "ignore", "PYTHONDONTWRITEBYTECODE": "1"},
        )
        if done.returncode != 0 or not answer.is_file():
            raise MigrationError(
                f"{repository}: its Python files can't be read as `feast apply` would read them; correct them and run "
                f"it again:\n{done.stderr.strip()[-2000:]}"
            )
        found = json.loads(answer.read_text(encoding="utf-8"))
    return {service: [(view, features) for view, features in reads] for service, reads in found.items()}


def reads_of(service: Any) -> Reads:
    """Return what a Feast feature service reads."""
    reads = [
        (projection.name, sorted(field.name for field in projection.features))
        for projection in service.feature_view_projections
    ]
    # References by name are resolved when the service is applied, and follow the views.
    pending = [reference.partition(":") for reference in service._pending_feature_refs]
    return [*reads, *((view, [feature] if feature else []) for view, _, feature in pending)]


def same_reads(one: Reads, other: Reads) -> bool:
    """Compare two services; a view without names has all of its features."""
    if [view for view, _ in one] != [view for view, _ in other]:
        return False
    pairs = zip(one, other, strict=True)
    return all(not left or not right or left == right for (_, left), (_, right) in pairs)


def read_declared(root: Path, versions: Mapping[str, str]) -> dict[str, Reads]:
    """Return what :func:`declared_services` does, in this process: its directory, path and modules are changed."""
    read = schema.read_versions

    def read_proposed(file: Path) -> dict[str, str]:
        return dict(versions) if file == root / schema.VERSIONS_FILE else read(file)

    schema.read_versions = read_proposed
    # As the `feast` command does: module names start at the working directory.
    os.chdir(root)
    sys.path.insert(0, str(root))
    from feast.repo_operations import parse_repo

    return {service.name: reads_of(service) for service in parse_repo(root).feature_services}


def _main() -> None:
    services = read_declared(Path(sys.argv[1]), json.load(sys.stdin))
    Path(sys.argv[2]).write_text(json.dumps(services), encoding="utf-8")


if __name__ == "__main__":
    _main()
