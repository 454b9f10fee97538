"""MovieLens latest-small: ratings and tags of films, 1996-2018.

Harper and Konstan (2015), The MovieLens Datasets: History and Context. Non-commercial terms: see the README in the zip.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from recsys_llm.errors import DownloadError
from recsys_llm.files import replaced_directory
from recsys_llm.sources.archive import opened_member
from recsys_llm.sources.download import exclusive, fetch_file, published_md5
from recsys_llm.timestamps import TIMESTAMP

URL = "https://files.grouplens.org/datasets/movielens/ml-latest-small.zip"
NAME = "movielens_small"
TAGS_IN_TEXT = 20
"""Most frequent tags that go into a film's text."""

_ARTICLES = ("The", "A", "An", "Les", "La", "Le", "Il", "El", "Das", "Der", "Die")
_DAY_S = 86_400


def fetch_movielens_small(cache: Path, *, url: str = URL, sha256: str | None = None) -> Path:
    """Download MovieLens latest-small, unless it is in ``cache``, and turn it into a data folder.

    A film's text is its genres and, from the time that they were given, its tags: a film has one row at 1 January of
    its year and another for each day on which it was tagged, stamped with the last tag of that day.

    Parameters
    ----------
    cache
        Directory, made if missing. The zip and the folder are kept there.
    url
        Where the zip is.
    sha256
        Expected checksum of the zip; None: its owner's MD5, fetched from ``url`` plus ``.md5``, is checked instead.

    Returns
    -------
    Path
        Folder with items.parquet, interactions.parquet and tags.parquet.

    Raises
    ------
    DownloadError
        The file can't be fetched, its checksum differs, or it has another form.
    """
    folder = cache / NAME
    with exclusive(cache):
        if folder.is_dir():
            return folder
        archive = cache / "ml-latest-small.zip"
        if not archive.is_file():
            md5 = None if sha256 else published_md5(url)
            fetch_file(url, archive, sha256=sha256, md5=md5)
        movies = _read(archive, "movies.csv", {"movieId": str, "title": str, "genres": str})
        ratings = _read(archive, "ratings.csv", {"userId": str, "movieId": str, "rating": "float32", "timestamp": int})
        tags = _read(archive, "tags.csv", {"userId": str, "movieId": str, "tag": str, "timestamp": int})
        with replaced_directory(folder) as temporary:
            pq.write_table(_items(movies, tags), temporary / "items.parquet")
            pq.write_table(_interactions(ratings), temporary / "interactions.parquet")
            pq.write_table(_tags(tags), temporary / "tags.parquet")
            (temporary / "PROVENANCE.md").write_text(
                f"MovieLens latest-small, from {url}.\nTerms: README.txt in the zip (no commercial use without "
                "permission; cite Harper and Konstan 2015, doi:10.1145/2827872).\n",
                encoding="utf-8",
            )
    return folder


def _read(archive: Path, name: str, types: dict[str, Any]) -> pd.DataFrame:
    with opened_member(archive, name) as member:
        try:
            return pd.read_csv(member, dtype=types, usecols=list(types), keep_default_na=False, encoding="utf-8")
        except ValueError as error:  # covers missing columns, bad numbers and bad UTF-8
            raise DownloadError(f"{archive.name}: {name} has another form: {error}; delete {archive}") from error


def _items(movies: pd.DataFrame, tags: pd.DataFrame) -> Any:
    by_film = {film: group for film, group in tags.sort_values(["timestamp", "tag"]).groupby("movieId")}
    columns = ("item_id", "title", "text", "category", "event_timestamp", "year")
    rows = [
        row
        for film, raw_title, genres in zip(movies["movieId"], movies["title"], movies["genres"], strict=True)
        for row in _versions(film, raw_title, genres, by_film.get(film))
    ]
    types = (pa.string(), pa.string(), pa.string(), pa.string(), TIMESTAMP, pa.int64())
    data = list(zip(*rows, strict=True)) or [()] * len(columns)
    arrays = [pa.array(values, type_) for values, type_ in zip(data, types, strict=True)]
    return pa.table(arrays, names=list(columns))


def _versions(film: str, raw_title: str, genres: str, tags: pd.DataFrame | None) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of one film: as it came out, then as it was tagged."""
    title, year = split_title(raw_title)
    category = "" if genres == "(no genres listed)" else ", ".join(genres.split("|"))
    released = None if year is None else datetime(year, 1, 1, tzinfo=UTC)
    yield film, title, _text(category, []), category, released, year
    counts: Counter[str] = Counter()
    if tags is not None:
        for _, day in tags.groupby(tags["timestamp"] // _DAY_S):
            counts.update(tag for tag in day["tag"].str.strip().str.lower() if tag)
            common = sorted(counts, key=lambda tag: (-counts[tag], tag))[:TAGS_IN_TEXT]
            last = datetime.fromtimestamp(int(day["timestamp"].max()), UTC)
            yield film, title, _text(category, common), category, last, year


def split_title(raw: str) -> tuple[str, int | None]:
    """Return a film's title, with its article in front, and its year.

    Examples
    --------
    >>> split_title("Matrix, The (1999)")
    ('The Matrix', 1999)
    >>> split_title("Babylon 5")
    ('Babylon 5', None)
    """
    title, year = raw.strip(), None
    if title[-6:-5] == "(" and title[-1:] == ")" and title[-5:-1].isdecimal() and int(title[-5:-1]) > 0:
        title, year = title[:-6].strip(), int(title[-5:-1])
    front, comma, article = title.rpartition(", ")
    return (f"{article} {front}" if comma and article in _ARTICLES else title), year


def _text(category: str, tags: list[str]) -> str:
    parts = [f"{category}." if category else "", f"Tagged: {', '.join(tags)}." if tags else ""]
    return " ".join(part for part in parts if part)


def _interactions(ratings: pd.DataFrame) -> Any:
    return pa.table(
        {
            "user_id": pa.array(ratings["userId"], pa.string()),
            "item_id": pa.array(ratings["movieId"], pa.string()),
            "rating": pa.array(ratings["rating"], pa.float32()),
            "event": pa.array(["rate"] * len(ratings), pa.string()),
            "event_timestamp": _stamps(ratings["timestamp"]),
        }
    )


def _tags(tags: pd.DataFrame) -> Any:
    return pa.table(
        {
            "user_id": pa.array(tags["userId"], pa.string()),
            "item_id": pa.array(tags["movieId"], pa.string()),
            "tag": pa.array(tags["tag"], pa.string()),
            "event_timestamp": _stamps(tags["timestamp"]),
        }
    )


def _stamps(seconds: Any) -> Any:
    return pa.array(seconds.to_numpy() * 1_000_000, pa.int64()).cast(TIMESTAMP)
