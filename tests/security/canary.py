"""Passwords that are looked for in whatever a program says and leaves, however they are written there."""

from __future__ import annotations

import base64
from pathlib import Path
from urllib.parse import quote

import pyarrow.parquet as pq
import redis
import sqlalchemy as sa

TOKEN = "q7canary"
"""Is in each piece of each password, so that one that is cut in two is found too."""


def password(name: str) -> str:
    """Return a password with the characters that URLs, lists and templates are cut at."""
    return f"{TOKEN}{name}@{TOKEN},{TOKEN}%{TOKEN}:{TOKEN}/{TOKEN}"


REDIS, POSTGRES = password("r"), password("p")
WRONG = password("w")
"""A secret as well: most wrong passwords are those of something else, or nearly right."""


def needles() -> dict[str, bytes]:
    """Return what is looked for, by how it is written."""
    found = {"plain": TOKEN.encode()}
    for secret in (REDIS, POSTGRES, WRONG):
        for written in (secret, quote(secret, safe="")):
            for offset in range(3):  # base64 of a text depends on where in it the password begins
                encoded = base64.b64encode(b"\0" * offset + written.encode())
                start = 4 * (offset > 0)  # what comes before depends on the bytes before
                found[f"base64 of {written} at {offset}"] = encoded[start : start + 20]
            found[f"hex of {written}"] = written.encode().hex().encode()
    return found


_NEEDLES = needles()


def hits(place: str, content: object) -> list[str]:
    """Return where a password is in bytes, in a text, or in how an object shows itself."""
    raw = content if isinstance(content, bytes) else str(content).encode("utf-8", "backslashreplace")
    return [
        f"{place}: {how}: ...{raw[max(0, raw.find(needle) - 200) : raw.find(needle) + 60]!r}..."
        for how, needle in _NEEDLES.items()
        if needle in raw
    ]


def in_files(folder: Path) -> list[str]:
    """Look into every file below a folder; parquet files are read as well, since they are compressed."""
    found = []
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            found += hits(str(file), file.read_bytes())
        if file.is_file() and file.suffix == ".parquet":
            schema = pq.read_schema(file)
            found += hits(f"{file}: metadata", [schema.metadata, pq.read_metadata(file).metadata])
            found += hits(f"{file}: rows", pq.read_table(file).to_pydict())
    return found


def in_database(engine: sa.Engine) -> list[str]:
    """Look into every column of every table: of the registry, of the ledger, and of the warehouse."""
    found, rows = [], 0
    with engine.connect() as connection:
        for table in sa.inspect(engine).get_table_names():
            for row in connection.execute(sa.text(f'select * from "{table}"')):
                rows += 1
                for value in row:
                    raw = bytes(value) if isinstance(value, bytes | memoryview) else value
                    found += hits(f"table {table}", raw)
    assert rows
    return found


def in_redis(client: redis.Redis) -> list[str]:
    """Look into every key."""
    found: list[str] = []
    keys = list(client.scan_iter())
    assert keys
    for key in keys:
        found += hits("Redis key", key) + hits(f"Redis {key!r}", client.hgetall(key))
    return found
