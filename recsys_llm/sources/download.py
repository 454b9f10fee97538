"""Files from the network: resumed where a connection was cut, checked, and whole or not there."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import requests
from filelock import FileLock
from tenacity import RetryError, Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential

from recsys_llm.errors import DownloadError
from recsys_llm.files import replaced_file

ATTEMPTS = 5
TIMEOUT_S = 30.0
"""Seconds without a byte after which a connection counts as cut."""
FIRST_WAIT_S = 1.0
"""Seconds before the second attempt; doubles with each further one."""
CHUNK_BYTES = 2**14
"""What a cut connection loses at most."""
_MD5 = re.compile(r"\b[0-9a-f]{32}\b")


class _TryAgainError(Exception):
    """The server or the network failed in a way that may pass."""


def fetch_file(url: str, target: Path, *, sha256: str | None = None, md5: str | None = None) -> Path:
    """Download ``url`` to ``target``, unless it is there.

    A cut connection is resumed by an HTTP range request, also by a later call; the part so far is ``target`` with the
    suffix ``.part``. Nothing takes the name ``target`` before its checksum is right.

    Parameters
    ----------
    url
        ``http`` or ``https``.
    target
        File; its directory exists.
    sha256, md5
        Expected checksums, in hex; None is not checked.

    Raises
    ------
    DownloadError
        The server refuses or can't be reached after :data:`ATTEMPTS` attempts, or a checksum differs; then the wrong
        file is removed.
    """
    if target.is_file():
        return target
    part = target.with_name(f"{target.name}.part")
    retrying = Retrying(
        stop=stop_after_attempt(ATTEMPTS),
        wait=wait_exponential(multiplier=FIRST_WAIT_S, max=30),
        retry=retry_if_exception_type(_TryAgainError),
    )
    try:
        retrying(_continue, url, part)
    except RetryError as error:
        reason = error.last_attempt.exception()
        raise DownloadError(
            f"{url}: {ATTEMPTS} attempts failed, the last with: {reason}; try again to resume"
        ) from None
    for algorithm, expected in (("sha256", sha256), ("md5", md5)):
        if expected is not None and (found := _checksum(part, algorithm)) != expected.lower():
            part.unlink()
            _validator_file(part).unlink(missing_ok=True)
            raise DownloadError(
                f"{url}: expected {algorithm} {expected.lower()}, found {found}; the file was altered on its way or "
                "replaced by its owner; try again, and report it if it stays"
            )
    with replaced_file(target) as temporary:
        part.rename(temporary)
    _validator_file(part).unlink(missing_ok=True)
    return target


def published_md5(url: str) -> str:
    """Return the MD5 that the owner publishes beside a file, at ``url`` plus ``.md5``.

    Raises
    ------
    DownloadError
        There is none, or it can't be fetched.
    """
    address = f"{url}.md5"
    try:
        response = requests.get(address, timeout=TIMEOUT_S)
        response.raise_for_status()
    except requests.RequestException as error:
        raise DownloadError(f"{address}: the checksum can't be fetched: {error}; check the network") from None
    found = _MD5.search(response.text.lower())
    if found is None:
        raise DownloadError(f"{address}: expected an MD5 in hex, found {response.text[:80]!r}")
    return found[0]


@contextmanager
def exclusive(directory: Path) -> Iterator[None]:
    """Make ``directory`` and let one process at a time work in it; the others wait."""
    directory.mkdir(parents=True, exist_ok=True)
    with FileLock(directory / ".lock"):
        yield


def _continue(url: str, part: Path) -> None:
    """Fetch what is missing of ``part``; a part of which the version is unknown is fetched anew."""
    validator = _validator_file(part)
    known = validator.read_text() if part.is_file() and validator.is_file() else None
    offset = part.stat().st_size if known else 0
    headers = {"Accept-Encoding": "identity"}
    if known and offset:
        headers |= {"Range": f"bytes={offset}-", "If-Range": known}
    try:
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_S) as response:
            _require_success(url, response, part)
            resumed = response.status_code == requests.codes.partial_content
            _remember_version(response, validator)
            with part.open("ab" if resumed else "wb") as file:
                for chunk in response.iter_content(CHUNK_BYTES):
                    file.write(chunk)
                size = file.tell()
    except requests.RequestException as error:
        raise _TryAgainError(str(error)) from error
    expected = int(response.headers.get("Content-Length", size)) + (offset if resumed else 0)
    if "Content-Length" in response.headers and size != expected:
        raise _TryAgainError(f"expected {expected} bytes, found {size}")


def _require_success(url: str, response: requests.Response, part: Path) -> None:
    status = response.status_code
    if status == requests.codes.requested_range_not_satisfiable:
        part.unlink()  # longer than the file on the server: of another version
        raise _TryAgainError("the part so far does not fit the file on the server")
    if status >= 500 or status == requests.codes.too_many_requests:
        raise _TryAgainError(f"HTTP {status} {response.reason}")
    if status not in (requests.codes.ok, requests.codes.partial_content):
        raise DownloadError(f"{url}: the server answered HTTP {status} {response.reason}; check the address")


def _remember_version(response: requests.Response, validator: Path) -> None:
    version = response.headers.get("ETag") or response.headers.get("Last-Modified")
    if version and not version.startswith("W/"):
        validator.write_text(version)
    else:
        validator.unlink(missing_ok=True)


def _validator_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.version")


def _checksum(file: Path, algorithm: str) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, algorithm).hexdigest()
