"""Members of downloaded zip files, and folders that are either whole or not there."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from recsys_llm.errors import DownloadError

MAX_MEMBER_BYTES = 2**30
"""A member that unpacks to more than this is refused."""


@contextmanager
def opened_member(archive: Path, name: str) -> Iterator[IO[bytes]]:
    """Open the one member of a zip file that is called ``name``, in any folder of it; nothing is unpacked to disk.

    Raises
    ------
    DownloadError
        The file is no zip, or has no such member, several, a damaged or an enormous one.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            found = [member for member in opened.infolist() if member.filename.rsplit("/", 1)[-1] == name]
            if len(found) != 1:
                raise DownloadError(
                    f"{archive.name}: expected one member {name!r}, found {len(found)}; delete {archive}"
                )
            if found[0].file_size > MAX_MEMBER_BYTES:
                raise DownloadError(
                    f"{archive.name}: {name!r} unpacks to {found[0].file_size} bytes, more than {MAX_MEMBER_BYTES}; "
                    f"delete {archive}"
                )
            with opened.open(found[0]) as member:
                yield member
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise DownloadError(f"{archive.name}: not a whole zip file: {error}; delete {archive} and try again") from error
