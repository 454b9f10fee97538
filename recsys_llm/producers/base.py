"""What a feature family has to offer so that the engine can compute it.

A producer works in two steps. :meth:`Producer.inputs` is cheap: it streams the rows that are due in an interval, each
with a hash of all that its value depends on. :meth:`Producer.compute` is dear: it turns rows that nobody has computed
yet into features. Between the two, the pipeline drops what the ledger already holds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple, Protocol

import pyarrow as pa

from recsys_llm.errors import ConfigError, did_you_mean
from recsys_llm.schema import PRODUCERS, TAG

INPUT_SOURCES = ("items", "interactions")


class Due(NamedTuple):
    """Rows that are due, and the events that they were drawn from."""

    rows: pa.RecordBatch
    """The join key (string), ``event_timestamp`` (timestamp[us, UTC]: when the row may first be seen), ``content_hash``
    (binary(16)) and whatever :meth:`Producer.compute` needs."""
    events: pa.RecordBatch | None = None
    """Where rows share their histories: the events, passed on to :meth:`Producer.compute` once, not once a row."""


class Producer(Protocol):
    """One feature view's way of computing its rows."""

    @property
    def join_key(self) -> str:
        """Column of the entity's key: ``user_id`` or ``item_id``."""

    @property
    def manifest(self) -> Mapping[str, str]:
        """What a row came from: at least ``fingerprint``; ``encoder_fingerprint`` where there are text vectors."""

    @property
    def features(self) -> pa.Schema:
        """Feature columns, without key and timestamps. ``row_id``, where it is one, is filled in by the pipeline."""

    @property
    def chunk_rows(self) -> int:
        """Rows to compute, write and record together."""

    @property
    def unit(self) -> str:
        """Name of a unit of work: ``tokens`` or ``rows``."""

    def inputs(self, start: datetime, end: datetime) -> Iterator[Due]:
        """Yield the rows stamped in (start, end], ordered by key and time."""

    def compute(self, rows: pa.RecordBatch, events: pa.RecordBatch | None) -> pa.RecordBatch:
        """Return the features (but ``row_id``) of each of ``rows``, some of those of one :class:`Due`, in their
        order.
        """

    def cost(self, rows: pa.RecordBatch) -> int:
        """Return how many units of work ``rows`` are, in :attr:`unit`."""


@dataclass(frozen=True)
class ProducerTag:
    """The ``recsys_llm`` tag of a feature view."""

    producer: str
    source: str
    model: str | None = None

    @classmethod
    def of(cls, view: str, tags: Mapping[str, str]) -> ProducerTag | None:
        """Return the tag of ``view``, or None for a view that recsys_llm doesn't compute.

        Raises
        ------
        ConfigError
            The tag is no JSON object, has an unknown key, or names a producer that is not on the list.
        """
        if TAG not in tags:
            return None
        try:
            raw: Any = json.loads(tags[TAG])
        except json.JSONDecodeError:
            raw = None
        if not isinstance(raw, dict) or not all(isinstance(value, str) for value in raw.values()):
            raise ConfigError(
                f"view {view}: tag {TAG!r} must be a JSON object of strings, found {tags[TAG]!r}; "
                "use recsys_llm.schema.producer_tag(...)"
            )
        for key in raw:
            if key not in cls.__dataclass_fields__:
                raise ConfigError(f"view {view}: unknown key {key!r} in tag {TAG!r}; {did_you_mean(key, cls._keys())}")
        for key in ("producer", "source"):
            if key not in raw:
                raise ConfigError(f"view {view}: tag {TAG!r} lacks the key {key!r}; known: {', '.join(cls._keys())}")
        if raw["producer"] not in PRODUCERS:
            hint = did_you_mean(raw["producer"], PRODUCERS)
            raise ConfigError(f"view {view}: unknown producer {raw['producer']!r}; {hint}")
        if raw["source"] not in INPUT_SOURCES:
            hint = did_you_mean(raw["source"], INPUT_SOURCES)
            raise ConfigError(f"view {view}: unknown source {raw['source']!r}; {hint}")
        return cls(**raw)

    @classmethod
    def _keys(cls) -> list[str]:
        return sorted(cls.__dataclass_fields__)
