"""Where Feast's online stores keep a row, as plain bytes and names: what a reader needs, without Feast."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class KeyForm:
    """Feast's serialised key of an entity with one string join key: ``head``, length, the id, ``tail``."""

    head: bytes
    """The join key's name and the id's type."""
    tail: bytes = b""
    """On Redis: the project."""

    def before(self, length: int) -> bytes:
        """Return what comes before an id of so many bytes."""
        return self.head + struct.pack("<I", length)

    def key(self, id_: str) -> bytes:
        """Return the key of an entity."""
        return self.keys([id_])[0]

    def id_of(self, key: bytes) -> str | None:
        """Return the id in a key; None where the key has another form.

        Examples
        --------
        >>> form = KeyForm(b"item_id", b"shop")
        >>> form.id_of(form.key("42")), form.id_of(b"another")
        ('42', None)
        """
        start, end = len(self.head) + 4, len(key) - len(self.tail)
        if not key.startswith(self.head) or not key.endswith(self.tail) or end < start:
            return None
        if key[len(self.head) : start] != struct.pack("<I", end - start):
            return None
        try:
            return key[start:end].decode("utf-8")
        except UnicodeDecodeError:
            return None

    def keys(self, ids: Sequence[str]) -> list[bytes]:
        """Return the keys of entities."""
        encoded = [id_.encode("utf-8") for id_ in ids]
        before = {length: self.before(length) for length in set(map(len, encoded))}
        return [before[len(id_)] + id_ + self.tail for id_ in encoded]


@dataclass(frozen=True)
class RedisLayout:
    """One view in Feast's Redis store: fields of the hash that all views of an entity share."""

    key: KeyForm
    fields: tuple[bytes, ...]
    """The hash fields of the view's features, in their order."""
    stamp: bytes
    """The hash field of the row's timestamp."""


@dataclass(frozen=True)
class SqliteLayout:
    """One view in Feast's sqlite store: a table with a row for each entity and feature."""

    key: KeyForm
    table: str
