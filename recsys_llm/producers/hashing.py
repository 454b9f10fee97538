"""Content hashes: what a stored row depends on, in 16 bytes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from hashlib import blake2b

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

HASH_BYTES = 16
HASH_TYPE = pa.binary(HASH_BYTES)

_BETWEEN_FIELDS = "\x1e"
_BETWEEN_ITEMS = "\x1f"
_NULL = "\x00null"


def fingerprint_of(settings: Mapping[str, object]) -> str:
    """Return a 32-digit hex hash of ``settings``, independent of the order of its keys.

    Examples
    --------
    >>> fingerprint_of({"a": 1, "b": 2}) == fingerprint_of({"b": 2, "a": 1})
    True
    """
    text = json.dumps(settings, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return blake2b(text.encode(), digest_size=HASH_BYTES).hexdigest()


def content_hashes(fingerprint: str, columns: Iterable[pa.Array]) -> pa.Array:
    """Hash row by row, together with the fingerprint of the model that will read them.

    Parameters
    ----------
    fingerprint
        Of the producer's model and settings.
    columns : arrays of n rows
        Strings, numbers, timestamps, binaries, or lists of strings or numbers.

    Returns
    -------
    pa.Array of binary(16), n rows
    """
    texts = [_as_text(column) for column in columns]
    joined = pc.binary_join_element_wise(*texts, _BETWEEN_FIELDS, null_handling="replace", null_replacement=_NULL)
    salt = fingerprint.encode()[:64]
    digests = [blake2b(row.encode(), digest_size=HASH_BYTES, key=salt).digest() for row in joined.to_pylist()]
    return pa.array(digests, HASH_TYPE)


def row_ids(hashes: pa.Array, created_micros: int) -> pa.Array:
    """Return int64 ids (>= 0) that name stored rows for ever: 63 bits of content hash and time of writing.

    A value that is computed again (because it was another one in between) is another row, with another id. Two of n
    rows share an id with probability n^2 / 2^64: 5e-8 for a million rows. Readers refuse a view in which it happened.
    """
    written = created_micros.to_bytes(8, "little", signed=True)
    raw = b"".join(blake2b(content + written, digest_size=8).digest() for content in hashes.to_pylist())
    ids: npt.NDArray[np.uint64] = np.frombuffer(raw, dtype="<u8")
    return pa.array((ids >> np.uint64(1)).astype(np.int64))


def _as_text(column: pa.Array) -> pa.Array:
    if pa.types.is_list(column.type):
        strings = pa.ListArray.from_arrays(
            column.offsets, pc.cast(column.values, pa.string()), mask=column.is_null() if column.null_count else None
        )
        return pc.binary_join(strings, _BETWEEN_ITEMS)
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.int64())
    if pa.types.is_fixed_size_binary(column.type):
        return pa.array([value.hex() for value in column.to_pylist()], pa.string())
    return pc.cast(column, pa.string())
