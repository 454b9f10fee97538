r"""Replies of one shape, read in place: a table of bytes instead of an object for each value.

Where every entity has every value, and values of one field have one length, the replies to a pipeline of HMGETs repeat
every ``size`` bytes; between their values stand the same bytes of framing::

    *2\r\n$6\r\n<6 bytes>\r\n$5\r\n<5 bytes>\r\n     reply of the first entity
    *2\r\n$6\r\n<6 bytes>\r\n$5\r\n<5 bytes>\r\n     reply of the second: what isn't a value is equal

All framing of all replies is compared as they come. Anything else (an error, a missing value, another length) is left
to the parser from the first byte on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple, overload

import numpy as np
import numpy.typing as npt

FIRST_BYTES = 65_536
"""Read at first: where they hold a reply, its shape is that of all."""
AFTER_BYTES = 65_536
"""Room for the replies behind the table, which may come along with its end."""

_LENGTH, _LENGTH_BEGUN = re.compile(rb"\$([0-9]{1,9})\r\n"), re.compile(rb"(\$([0-9]{1,9}\r?)?)?")
Bytes = npt.NDArray[np.uint8]


class EqualValues(Sequence[bytes]):
    """n values of equal length, uint8 (n, length); bytes are made of one when it is asked for."""

    def __init__(self, table: Bytes) -> None:
        self.table = table

    def __len__(self) -> int:
        return len(self.table)

    @overload
    def __getitem__(self, place: int) -> bytes: ...
    @overload
    def __getitem__(self, place: slice) -> list[bytes]: ...
    def __getitem__(self, place: int | slice) -> bytes | list[bytes]:
        if isinstance(place, slice):
            return [row.tobytes() for row in self.table[place]]
        value: bytes = self.table[place].tobytes()
        return value

    def __iter__(self) -> Iterator[bytes]:
        return (row.tobytes() for row in self.table)


class ReplyTable(NamedTuple):
    """n replies, each an array of values: all of one shape."""

    table: Bytes
    """uint8 (n, size): whole replies."""
    places: tuple[tuple[int, int], ...]
    """Of each field, where its value starts and ends in a reply."""

    def columns(self) -> list[EqualValues]:
        """Return the values of each field."""
        return [EqualValues(self.table[:, start:end]) for start, end in self.places]


class Shape(NamedTuple):
    """What all replies are compared with."""

    size: int
    """Bytes of a reply."""
    places: tuple[tuple[int, int], ...]
    framing: npt.NDArray[np.int64]
    """Which bytes of a reply belong to no value, ascending."""
    expected: Bytes
    """These bytes."""


PARTIAL: Literal["partial"] = "partial"
"""Of a reply that may be of such a shape, once the rest of it has come: the server owes it."""


def shape_of(reply: bytes, fields: int) -> Shape | Literal["partial"] | None:
    r"""Return the shape of the reply that bytes start with; None where it is no array of so many values.

    Examples
    --------
    >>> shape = shape_of(b"*2\r\n$2\r\nab\r\n$1\r\nc\r\n*2\r\n$2...", 2)
    >>> shape.size, shape.places
    (19, ((8, 10), (16, 17)))
    >>> shape_of(b"*2\r\n$2\r\nab\r\n$1", 2)
    'partial'
    >>> shape_of(b"*2\r\n$2\r\nab\r\n$-1\r\n", 2)
    """
    head = b"*%d\r\n" % fields
    if not reply.startswith(head):
        return PARTIAL if head.startswith(reply) else None
    at, places = len(head), []
    for _ in range(fields):
        line = _LENGTH.match(reply, at)
        if line is None:
            return PARTIAL if _LENGTH_BEGUN.fullmatch(reply, at) else None
        end = line.end() + int(line[1])
        if len(reply) < end + 2:
            return PARTIAL
        if reply[end : end + 2] != b"\r\n":
            return None
        places.append((line.end(), end))
        at = end + 2
    framed = np.ones(at, dtype=np.bool_)
    for start, end in places:
        framed[start:end] = False
    framing = np.flatnonzero(framed)
    return Shape(at, tuple(places), framing, np.frombuffer(reply, np.uint8, at)[framing])


def read_table(
    receive: Callable[[memoryview], int], count: int, fields: int
) -> tuple[ReplyTable | None, memoryview[int]]:
    """Read replies that may be of one shape.

    Parameters
    ----------
    receive
        Fills a buffer with what comes next, and returns how many bytes that was; 1 or more.
    count
        How many replies are owed, at least.
    fields
        Values in each.

    Returns
    -------
    tuple
        The table of ``count`` replies, and what came after them; or None, and all that came.
    """
    first = np.empty(FIRST_BYTES, dtype=np.uint8)
    filled = receive(first.data)
    shape = shape_of(first[:filled].tobytes(), fields)
    while shape == PARTIAL and filled < FIRST_BYTES:
        filled += receive(first.data[filled:])
        shape = shape_of(first[:filled].tobytes(), fields)
    if not isinstance(shape, Shape):
        return None, first.data[:filled]
    total = count * shape.size
    buffer = np.empty(max(total, filled) + AFTER_BYTES, dtype=np.uint8)
    buffer[:filled] = first[:filled]
    view, whole = buffer.data, buffer[:total].reshape(count, shape.size)
    checked = 0
    while True:
        # A reply is owed to its end once its framing so far is that of the others: only then may more be waited for.
        rows, rest = divmod(min(filled, total), shape.size)
        if not (whole[checked:rows][:, shape.framing] == shape.expected).all():
            return None, view[:filled]
        seen = int(np.searchsorted(shape.framing, rest))
        if seen and not (whole[rows, shape.framing[:seen]] == shape.expected[:seen]).all():
            return None, view[:filled]
        checked = rows
        if filled >= total:
            return ReplyTable(whole, shape.places), view[total:filled]
        filled += receive(view[filled:])
