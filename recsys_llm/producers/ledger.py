"""The ledger: which values have been computed, so that none is computed twice.

One row for each value, keyed by (view, entity key, time, content hash); one row for each committed part file; one row
for each view with the fingerprint it is bound to. Any SQLAlchemy URL will do. The parts are the truth and the ledger
is an index of them: a lost ledger is rebuilt from the parts (:mod:`recsys_llm.producers.pipeline`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa
from filelock import FileLock, Timeout

from recsys_llm.errors import FingerprintError, LedgerError
from recsys_llm.schema import CONTENT_HASH, EVENT_TIMESTAMP
from recsys_llm.timestamps import to_micros

_METADATA = sa.MetaData()
_VALUES = sa.Table(
    "recsys_llm_values",
    _METADATA,
    sa.Column("view", sa.String(63), primary_key=True),
    sa.Column("entity_key", sa.Text, primary_key=True),
    sa.Column("event_micros", sa.BigInteger, primary_key=True),
    sa.Column("content_hash", sa.LargeBinary(16), primary_key=True),
    sqlite_with_rowid=False,
)
_PARTS = sa.Table(
    "recsys_llm_parts",
    _METADATA,
    sa.Column("view", sa.String(63), primary_key=True),
    sa.Column("part", sa.String(255), primary_key=True),
    sa.Column("rows", sa.BigInteger, nullable=False),
)
_VIEWS = sa.Table(
    "recsys_llm_views",
    _METADATA,
    sa.Column("view", sa.String(63), primary_key=True),
    sa.Column("fingerprint", sa.String(64), nullable=False),
)

_KEYS_PER_QUERY = 500


class Ledger:
    """Index of everything computed so far.

    Parameters
    ----------
    url
        SQLAlchemy URL. A sqlite file and its folder are created when first needed.
    lock_directory
        Where the lock files of views lie.
    """

    def __init__(self, url: str, *, lock_directory: Path) -> None:
        self._url = sa.make_url(url)
        self._lock_directory = lock_directory
        self._engine = sa.create_engine(self._url)

    def open(self) -> Ledger:
        """Create the tables where they are missing, and return self."""
        if self._url.get_backend_name() == "sqlite" and self._url.database:
            Path(self._url.database).parent.mkdir(parents=True, exist_ok=True)
        _METADATA.create_all(self._engine)
        return self

    def close(self) -> None:
        """Give back the connections."""
        self._engine.dispose()

    @contextmanager
    def lock(self, view: str) -> Iterator[None]:
        """Hold ``view`` for one run; the operating system frees it when the process dies.

        Raises
        ------
        LedgerError
            Another run holds the view.
        """
        self._lock_directory.mkdir(parents=True, exist_ok=True)
        file = self._lock_directory / f"{view}.lock"
        try:
            with FileLock(file, timeout=0):
                yield
        except Timeout:
            raise LedgerError(
                f"view {view} is being materialised by another run (lock {file}); wait until it has ended"
            ) from None

    def bind(self, view: str, fingerprint: str) -> None:
        """Tie ``view`` to the model with this fingerprint; the first call decides.

        Raises
        ------
        FingerprintError
            The view holds values of another model.
        """
        with self._engine.begin() as connection:
            bound = connection.scalar(sa.select(_VIEWS.c.fingerprint).where(_VIEWS.c.view == view))
            if bound is None:
                connection.execute(_VIEWS.insert().values(view=view, fingerprint=fingerprint))
            elif bound != fingerprint:
                raise FingerprintError(
                    f"view {view} holds values of fingerprint {bound}, the model or settings at hand have "
                    f"{fingerprint}; they must not be mixed: add a view of a new version (such as _v2) with the new "
                    "model, or restore the old model and settings"
                )

    def unknown(self, view: str, join_key: str, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Return the rows of ``batch`` whose value is not recorded yet, in their order."""
        keys = pc.unique(batch.column(join_key)).to_pylist()
        known: list[bytes] = []
        with self._engine.connect() as connection:
            for some in _slices(keys):
                query = sa.select(_VALUES.c.content_hash).where(_VALUES.c.view == view, _VALUES.c.entity_key.in_(some))
                known.extend(connection.scalars(query))
        if not known:
            return batch
        hashes = batch.column(CONTENT_HASH)
        return batch.filter(pc.invert(pc.is_in(hashes, value_set=pa.array(known, hashes.type))))

    def newest(self, view: str, keys: Sequence[str]) -> dict[str, int]:
        """Return the newest recorded time of each key, in microseconds since the epoch; unknown keys are left out."""
        found: dict[str, int] = {}
        newest = sa.func.max(_VALUES.c.event_micros)
        with self._engine.connect() as connection:
            for some in _slices(keys):
                query = (
                    sa.select(_VALUES.c.entity_key, newest)
                    .where(_VALUES.c.view == view, _VALUES.c.entity_key.in_(some))
                    .group_by(_VALUES.c.entity_key)
                )
                found.update((key, micros) for key, micros in connection.execute(query))
        return found

    def record(self, view: str, join_key: str, part: str, table: pa.Table) -> None:
        """Commit a part and its values, all or nothing; recording the same again changes nothing."""
        known = self.unknown(view, join_key, table.combine_chunks().to_batches()[0]) if table.num_rows else table
        with self._engine.begin() as connection:
            rows = [
                {"view": view, "entity_key": key, "event_micros": to_micros(time), "content_hash": content}
                for key, time, content in zip(
                    known.column(join_key).to_pylist(),
                    known.column(EVENT_TIMESTAMP).to_pylist(),
                    known.column(CONTENT_HASH).to_pylist(),
                    strict=True,
                )
            ]
            if rows:
                connection.execute(_VALUES.insert(), rows)
            if connection.scalar(sa.select(_PARTS.c.rows).where(_PARTS.c.view == view, _PARTS.c.part == part)) is None:
                connection.execute(_PARTS.insert().values(view=view, part=part, rows=table.num_rows))

    def parts(self, view: str) -> set[str]:
        """Return the names of the committed parts of ``view``."""
        with self._engine.connect() as connection:
            return set(connection.scalars(sa.select(_PARTS.c.part).where(_PARTS.c.view == view)))

    def count(self, view: str) -> int:
        """Return the number of recorded values of ``view``."""
        query = sa.select(sa.func.count()).select_from(_VALUES).where(_VALUES.c.view == view)
        with self._engine.connect() as connection:
            return int(connection.scalar(query) or 0)


def _slices(keys: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for first in range(0, len(keys), _KEYS_PER_QUERY):
        yield keys[first : first + _KEYS_PER_QUERY]
