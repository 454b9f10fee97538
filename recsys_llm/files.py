"""Files and directories that are either whole or not there."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def is_plain_name(name: Any) -> bool:
    """Return whether ``name`` is that of a file in a directory at hand, and leads to no other directory.

    Examples
    --------
    >>> is_plain_name("items.safetensors"), is_plain_name("../items.safetensors"), is_plain_name("..")
    (True, False, False)
    """
    return isinstance(name, str) and Path(name).name == name and name != ".." and "\0" not in name


@contextlib.contextmanager
def replaced_file(target: Path, *, temporary: Path | None = None) -> Iterator[Path]:
    """Hand out a temporary path; on success it is synced and takes the place of ``target``, otherwise it is removed.

    Parameters
    ----------
    temporary
        On the same file system; None: a hidden name beside ``target``.

    Examples
    --------
    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "note.txt"
    >>> with replaced_file(target) as file:
    ...     _ = file.write_text("whole")
    >>> target.read_text(), [path.name for path in target.parent.iterdir()]
    ('whole', ['note.txt'])
    """
    temporary = temporary or target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as handle:
            os.fsync(handle.fileno())
        temporary.replace(target)
        sync_directory(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replaced_directory(target: Path) -> Iterator[Path]:
    """Hand out an empty directory beside ``target``; on success it takes its place as a whole, otherwise it is removed.

    A directory can't be replaced in one step: a process killed between the two renames leaves the old one beside
    ``target``, as ``.NAME.*.old``.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    old = fresh.with_name(f"{fresh.name}.old")
    try:
        yield fresh
        fresh.chmod(0o755)
        if target.exists():
            target.rename(old)
        fresh.rename(target)
        sync_directory(target.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def write_synced(file: Path, content: bytes) -> None:
    """Write a file and wait until the disk has it."""
    with file.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def sync_directory(directory: Path) -> None:
    """Make a rename in ``directory`` survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 (hex) of a file, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def canonical_json(value: Any) -> bytes:
    """Return JSON that is the same for the same value, for hashing."""
    return json.dumps(value, sort_keys=True, indent=1, allow_nan=False).encode()


def signed_json(content: Mapping[str, Any], *, key: str = "signature") -> bytes:
    """Return JSON that carries its own SHA-256, under ``key``, so that an altered byte shows.

    Examples
    --------
    >>> read_signed_json(signed_json({"format": 1}))
    {'format': 1}
    """
    return canonical_json({**content, key: hashlib.sha256(canonical_json(content)).hexdigest()})


def read_signed_json(content: bytes, *, key: str = "signature") -> dict[str, Any]:
    """Return what :func:`signed_json` was given.

    Raises
    ------
    ValueError
        It is not as it was written.
    """
    try:
        found = json.loads(content)
        signature = found.pop(key, None) if isinstance(found, dict) else None
        altered = signature is None or signed_json(found, key=key) != content
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if altered:
        raise ValueError("altered or truncated since it was written")
    return dict(found)
