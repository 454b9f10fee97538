"""Which view services read in place of which (versions.yaml), and what migrations have done (data/migrations.jsonl)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from recsys_llm import schema
from recsys_llm.commands.migration.moves import Pairs
from recsys_llm.errors import ConfigError, MigrationError
from recsys_llm.files import replaced_file

JOURNAL = "data/migrations.jsonl"
_LOCK = "data/locks/migration.lock"
_HEAD = (
    "# Which view services read in place of which. Written by `recsys-llm migrate`; feature_services.py follows it.\n"
)


def read_versions(repository: Path) -> Pairs:
    """Return what versions.yaml holds; empty without the file.

    Raises
    ------
    ConfigError
        It is no mapping of names.
    """
    try:
        return schema.read_versions(repository / schema.VERSIONS_FILE)
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigError(str(error)) from None


def write_versions(repository: Path, versions: Mapping[str, str]) -> None:
    """Write versions.yaml, whole or not at all."""
    lines = "".join(f"{old}: {new}\n" for old, new in sorted(versions.items()))
    with replaced_file(repository / schema.VERSIONS_FILE) as file:
        file.write_text(_HEAD + (lines or "{}\n"), encoding="utf-8")


def note(repository: Path, **record: Any) -> None:
    """Append a line to the journal, and wait until the disk has it."""
    file = repository / JOURNAL
    file.parent.mkdir(parents=True, exist_ok=True)
    before = file.read_bytes() if file.is_file() else b""
    # A line that a killed process cut short must not swallow this one.
    start = b"\n" if before and not before.endswith(b"\n") else b""
    with file.open("ab") as stream:
        stream.write(start + json.dumps(record, sort_keys=True).encode() + b"\n")
        stream.flush()
        os.fsync(stream.fileno())


def history(repository: Path) -> list[dict[str, Any]]:
    """Return the lines of the journal, oldest first; one that a killed process cut short is left out."""
    file = repository / JOURNAL
    found = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def switched_together(repository: Path, old: str, new: str) -> Pairs:
    """Return all pairs of the last cutover that moved ``old`` to ``new``; that pair alone if none is known."""
    for record in reversed(history(repository)):
        if record.get("action") == "cutover" and record.get("views", {}).get(old) == new:
            return dict(record["views"])
    return {old: new}


@contextmanager
def one_at_a_time(repository: Path) -> Iterator[None]:
    """Hold the repository for one switch; the operating system frees it when the process dies.

    Raises
    ------
    MigrationError
        Another switch is under way.
    """
    file = repository / _LOCK
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(file, timeout=0):
            yield
    except Timeout:
        raise MigrationError(
            f"another cutover or rollback is under way (lock {file}); wait until it has ended"
        ) from None
