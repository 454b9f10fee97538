"""A part's name is the SHA-256 of its file, so that one altered bit is noticed by whoever reads it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from recsys_llm.errors import PartError
from recsys_llm.files import sha256_of

DIGEST_LENGTH = 40
_NAME = re.compile(rf"part-([0-9a-f]{{{DIGEST_LENGTH}}})\.parquet")
"""Parts of earlier versions have shorter names, and no checksum but those of their pages."""


def part_name(file: Path) -> str:
    """Return the name that a file gets as a part."""
    return f"part-{sha256_of(file)[:DIGEST_LENGTH]}.parquet"


def check_part(file: Path, view: str) -> None:
    """Refuse a part that is not as it was written; files of other names are not looked at.

    Each state of a file (time of its last change, size) is read once in a process, at 0.5 to 1.5 GB/s.

    Raises
    ------
    PartError
        The file was altered, or can't be read.
    FileNotFoundError
        It is gone.
    """
    match = _NAME.fullmatch(file.name)
    if match is None:
        return
    try:
        state = file.stat()
        found = _digest(str(file), state.st_mtime_ns, state.st_size)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise PartError(f"{file}: can't be read as a part ({error.strerror})") from None
    if found != match[1]:
        raise PartError(
            f"{file}: expected SHA-256 {match[1]}..., found {found}...: the file was altered; restore it, or "
            f"delete it and run `recsys-llm rebuild {view}`"
        )


def check_parts(files: Iterable[Path], view: str) -> None:
    """Do so with several; see :func:`check_part`."""
    for file in files:
        check_part(file, view)


@lru_cache(maxsize=65_536)
def _digest(file: str, _modified: int, _size: int) -> str:
    return sha256_of(Path(file))[:DIGEST_LENGTH]
