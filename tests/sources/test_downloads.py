"""Fetching one file: resumed, tried again, checked."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from recsys_llm.errors import DownloadError
from recsys_llm.sources.download import ATTEMPTS, fetch_file
from tests.sources.http_site import Site

CONTENT = bytes(range(256)) * 500
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def test_a_file_is_fetched_once(site: Site, tmp_path: Path) -> None:
    site.files["/f"] = CONTENT
    for _ in range(2):
        assert fetch_file(f"{site.url}/f", tmp_path / "f", sha256=SHA256.upper()).read_bytes() == CONTENT
    assert site.requests == [("/f", None)]
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_a_cut_connection_is_resumed_where_it_was_cut(site: Site, tmp_path: Path) -> None:
    site.files["/f"], site.cuts = CONTENT, [1000, 50_000]
    assert fetch_file(f"{site.url}/f", tmp_path / "f", sha256=SHA256).read_bytes() == CONTENT
    assert site.requests == [("/f", None), ("/f", "bytes=1000-"), ("/f", "bytes=51000-")]


def test_a_later_call_resumes(site: Site, tmp_path: Path) -> None:
    site.files["/f"], site.cuts = CONTENT, [100] * ATTEMPTS
    with pytest.raises(DownloadError, match=rf"{ATTEMPTS} attempts failed.*try again to resume"):
        fetch_file(f"{site.url}/f", tmp_path / "f")
    assert not (tmp_path / "f").exists() and len(site.requests) == ATTEMPTS
    assert fetch_file(f"{site.url}/f", tmp_path / "f").read_bytes() == CONTENT
    assert site.requests[-1] == ("/f", f"bytes={100 * ATTEMPTS}-")


def test_a_file_that_was_replaced_meanwhile_is_not_mixed(site: Site, tmp_path: Path) -> None:
    site.files["/f"], site.cuts = b"old" * 1000, [500] * ATTEMPTS
    with pytest.raises(DownloadError):
        fetch_file(f"{site.url}/f", tmp_path / "f")
    site.files["/f"], site.etag = CONTENT, '"v2"'
    assert fetch_file(f"{site.url}/f", tmp_path / "f").read_bytes() == CONTENT


@pytest.mark.parametrize("etag", [None, 'W/"v1"'], ids=["none", "weak"])
def test_without_a_strong_version_it_starts_anew(site: Site, tmp_path: Path, etag: str | None) -> None:
    site.files["/f"], site.cuts, site.etag = CONTENT, [1000], etag
    assert fetch_file(f"{site.url}/f", tmp_path / "f").read_bytes() == CONTENT
    assert site.requests == [("/f", None), ("/f", None)]


def test_a_part_that_is_already_whole_is_not_trusted(site: Site, tmp_path: Path) -> None:
    site.files["/f"] = CONTENT
    (tmp_path / "f.part").write_bytes(b"x" * len(CONTENT))
    (tmp_path / "f.part.version").write_text('"v1"')
    assert fetch_file(f"{site.url}/f", tmp_path / "f", sha256=SHA256).read_bytes() == CONTENT


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_passing_failure_is_tried_again(site: Site, tmp_path: Path, status: int) -> None:
    site.files["/f"], site.statuses = CONTENT, [status, status]
    assert fetch_file(f"{site.url}/f", tmp_path / "f").read_bytes() == CONTENT


@pytest.mark.parametrize("status", [403, 404, 410])
def test_a_refusal_is_final(site: Site, tmp_path: Path, status: int) -> None:
    site.files["/f"], site.statuses = CONTENT, [status]
    with pytest.raises(DownloadError, match=rf"/f: the server answered HTTP {status}"):
        fetch_file(f"{site.url}/f", tmp_path / "f")
    assert len(site.requests) == 1 and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
def test_a_wrong_checksum_leaves_nothing(site: Site, tmp_path: Path, algorithm: str) -> None:
    site.files["/f"] = CONTENT
    with pytest.raises(DownloadError, match=rf"expected {algorithm} 0000, found "):
        fetch_file(f"{site.url}/f", tmp_path / "f", **{algorithm: "0000"})
    assert list(tmp_path.iterdir()) == []


def test_no_server_is_a_download_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recsys_llm.sources.download.FIRST_WAIT_S", 0.0)
    with pytest.raises(DownloadError, match="attempts failed"):
        fetch_file("http://127.0.0.1:9/f", tmp_path / "f")
    assert list(tmp_path.iterdir()) == []
