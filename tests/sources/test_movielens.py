"""MovieLens from a local server: the folder that it becomes, and what is refused."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from recsys_llm import sources
from recsys_llm.config import Config, InteractionsConfig, ItemsConfig, SourcesConfig, UserWordsConfig
from recsys_llm.errors import DownloadError
from recsys_llm.sources import fetch_movielens_small
from tests.sources.http_site import Site, names_left, zip_of

# --- MovieLens

MOVIES = (
    "movieId,title,genres\n"
    '1,"Matrix, The (1999)",Action|Sci-Fi\n'
    "2,Babylon 5,(no genres listed)\n"
    '3,"Misérables, Les (1995)",Drama\n'
)
RATINGS = "userId,movieId,rating,timestamp\n1,1,4.0,964982703\n2,1,0.5,964982704\n2,3,5.0,964982704\n"
TAGS = (
    "userId,movieId,tag,timestamp\n"
    "1,1,Cyberpunk,1000000000\n2,1,cyberpunk,1000000100\n2,1,NA,1000000050\n2,1,hackers,1100000000\n"
)
NAMES = ("movies.csv", "ratings.csv", "tags.csv")


def movielens_zip(**replaced: str | None) -> bytes:
    """Return a zip of the form of ml-latest-small; None leaves a member out."""
    texts = dict(zip(NAMES, (MOVIES, RATINGS, TAGS), strict=True)) | {f"{k}.csv": v for k, v in replaced.items()}
    return zip_of({f"ml-latest-small/{name}": text.encode() for name, text in texts.items() if text is not None})


def publish(site: Site, content: bytes, md5: str | None = None) -> str:
    site.files["/ml.zip"] = content
    site.files["/ml.zip.md5"] = f"MD5 (ml.zip) = {md5 or hashlib.md5(content).hexdigest()}\n".encode()
    return f"{site.url}/ml.zip"


def test_movielens_becomes_a_data_folder(site: Site, tmp_path: Path) -> None:
    folder = fetch_movielens_small(tmp_path / "cache", url=publish(site, movielens_zip()))
    assert sorted(path.name for path in folder.iterdir()) == [
        "PROVENANCE.md", "interactions.parquet", "items.parquet", "tags.parquet",
    ]  # fmt: skip
    items = pq.read_table(folder / "items.parquet").to_pylist()
    assert [(row["item_id"], row["title"], row["text"], row["year"]) for row in items] == [
        ("1", "The Matrix", "Action, Sci-Fi.", 1999),
        ("1", "The Matrix", "Action, Sci-Fi. Tagged: cyberpunk, na.", 1999),
        ("1", "The Matrix", "Action, Sci-Fi. Tagged: cyberpunk, hackers, na.", 1999),
        ("2", "Babylon 5", "", None),
        ("3", "Les Misérables", "Drama.", 1995),
    ]
    stamps = [row["event_timestamp"] for row in items]
    assert stamps == [
        datetime(1999, 1, 1, tzinfo=UTC),
        datetime.fromtimestamp(1_000_000_100, UTC),
        datetime.fromtimestamp(1_100_000_000, UTC),
        None,
        datetime(1995, 1, 1, tzinfo=UTC),
    ]


def test_a_text_holds_no_tag_that_is_given_later(site: Site, tmp_path: Path) -> None:
    folder = fetch_movielens_small(tmp_path, url=publish(site, movielens_zip()))
    tags = pq.read_table(folder / "tags.parquet").to_pylist()
    checked = 0
    for item in pq.read_table(folder / "items.parquet").to_pylist():
        for tag in tags:
            if tag["item_id"] == item["item_id"] and tag["tag"].lower() in item["text"]:
                first = min(t["event_timestamp"] for t in tags if t["tag"].lower() == tag["tag"].lower())
                assert first <= item["event_timestamp"]
                checked += 1
    assert checked > 3


def test_movielens_is_read_by_the_canonical_tables(site: Site, tmp_path: Path) -> None:
    folder = fetch_movielens_small(tmp_path, url=publish(site, movielens_zip()))
    config = Config(
        sources=SourcesConfig(
            items=ItemsConfig(parquet="items.parquet"),
            interactions=InteractionsConfig(parquet="interactions.parquet", rating="rating", liked_from=4.0),
            user_words=UserWordsConfig(parquet="tags.parquet", text="tag"),
        ),
        root=folder,
    )
    counts = [
        sum(batch.num_rows for batch in table(config))
        for table in (sources.items, sources.interactions, sources.user_words)
    ]
    assert counts == [5, 3, 4]


def test_a_folder_that_is_there_needs_no_network(site: Site, tmp_path: Path) -> None:
    url = publish(site, movielens_zip())
    first = fetch_movielens_small(tmp_path, url=url)
    asked = len(site.requests)
    assert fetch_movielens_small(tmp_path, url=url) == first and len(site.requests) == asked


def test_a_cut_movielens_is_resumed_and_whole(site: Site, tmp_path: Path) -> None:
    content = movielens_zip()
    url = publish(site, content)
    site.cuts = [1000, 100]  # the checksum is whole within 1000 bytes; the zip is cut
    assert (fetch_movielens_small(tmp_path, url=url) / "items.parquet").is_file()
    assert ("/ml.zip", "bytes=100-") in site.requests


def test_an_altered_movielens_is_refused_and_leaves_nothing(site: Site, tmp_path: Path) -> None:
    url = publish(site, movielens_zip(), md5="0" * 32)
    with pytest.raises(DownloadError, match="expected md5 0{32}, found"):
        fetch_movielens_small(tmp_path, url=url)
    assert names_left(tmp_path) == []


def test_a_given_sha256_replaces_the_published_checksum(site: Site, tmp_path: Path) -> None:
    content = movielens_zip()
    url = publish(site, content, md5="0" * 32)
    with pytest.raises(DownloadError, match="expected sha256"):
        fetch_movielens_small(tmp_path, url=url, sha256="0" * 64)
    assert fetch_movielens_small(tmp_path, url=url, sha256=hashlib.sha256(content).hexdigest()).is_dir()


@pytest.mark.parametrize("published", [None, b"<html>moved</html>"])
def test_movielens_without_a_published_checksum_is_refused(site: Site, tmp_path: Path, published: bytes | None) -> None:
    url = publish(site, movielens_zip())
    site.files.pop("/ml.zip.md5") if published is None else site.files.update({"/ml.zip.md5": published})
    with pytest.raises(DownloadError, match=r"/ml\.zip\.md5"):
        fetch_movielens_small(tmp_path, url=url)
    assert names_left(tmp_path) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not a zip", "not a whole zip file"),
        (movielens_zip(tags=None), "expected one member 'tags.csv', found 0"),
        (movielens_zip(ratings="userId,movieId,stars\n1,1,5\n"), "ratings.csv has another form"),
        (movielens_zip(ratings="userId,movieId,rating,timestamp\n1,1,five,0\n"), "ratings.csv has another form"),
        (
            zip_of({f"{folder}/{name}": b"" for folder in "ab" for name in NAMES}),
            "expected one member 'movies.csv', found 2",
        ),
    ],
)
def test_a_zip_of_another_form_makes_no_folder(site: Site, tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(DownloadError, match=message):
        fetch_movielens_small(tmp_path, url=publish(site, content))
    assert names_left(tmp_path) == ["ml-latest-small.zip"]


def test_a_zip_that_would_fill_the_memory_is_refused(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recsys_llm.sources.archive.MAX_MEMBER_BYTES", 100)
    with pytest.raises(DownloadError, match=r"unpacks to \d+ bytes, more than 100"):
        fetch_movielens_small(tmp_path, url=publish(site, movielens_zip()))


def test_member_paths_are_never_written_to(site: Site, tmp_path: Path) -> None:
    texts = dict(zip(NAMES, (MOVIES, RATINGS, TAGS), strict=True))
    hostile = {f"../../{name}": text.encode() for name, text in texts.items()} | {"/etc/evil": b"x", "../evil": b"x"}
    cache = tmp_path / "deep" / "cache"
    fetch_movielens_small(cache, url=publish(site, zip_of(hostile)))
    written = {path.relative_to(cache).parts[0] for path in tmp_path.rglob("*") if path.is_file()}
    assert written - {".lock"} == {"movielens_small", "ml-latest-small.zip"}
