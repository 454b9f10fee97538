"""The ledger: which values have been computed, so that none is computed twice.

For each view: the current content hash of each (entity key, time), the committed part files, the fingerprint that the
view is bound to, and the online stores that hold its rows. Any SQLAlchemy URL will do. The parts are the truth and
the ledger is an index of them: a lost ledger is rebuilt from the parts (:mod:`recsys_llm.producers.pipeline`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa

from recsys_llm.errors import ConfigError, FingerprintError, LedgerError
from recsys_llm.passwords import database_url, first_line, shown_url
from recsys_llm.producers.locks import advisory_lock, file_lock
from recsys_llm.schema import CONTENT_HASH, EVENT_TIMESTAMP

_METADATA = sa.MetaData()
_VALUES = sa.Table(
    "recsys_llm_values",
    _METADATA,
    sa.Column("view", sa.String(63), primary_key=True),
    sa.Column("entity_key", sa.Text, primary_key=True),
    sa.Column("event_micros", sa.BigInteger, primary_key=True),
    sa.Column("content_hash", sa.LargeBinary(16), nullable=False),
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
_STORES = sa.Table(
    "recsys_llm_stores",
    _METADATA,
    sa.Column("view", sa.String(63), primary_key=True),
    sa.Column("store", sa.String(64), primary_key=True),
)
_INTERVALS = sa.Table(
    "recsys_llm_intervals",
    _METADATA,
    sa.Column("view", sa.String(63), primary_key=True),
    sa.Column("registry", sa.String(64), primary_key=True),
    sa.Column("start_micros", sa.BigInteger, primary_key=True),
    sa.Column("end_micros", sa.BigInteger, primary_key=True),
    sa.Column("ended_micros", sa.BigInteger, nullable=False),
)

_KEYS_PER_QUERY = 500
_RETIRED = -1
"""Number of rows of a part whose rows others hold."""


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
        self._url = database_url(url, name="ledger")
        self._lock_directory = lock_directory
        try:
            self._engine = sa.create_engine(self._url)
        except (sa.exc.NoSuchModuleError, ModuleNotFoundError) as error:
            raise ConfigError(f"ledger: {error}; install the driver of this database") from None
        if self._url.get_backend_name() == "sqlite":
            sa.event.listen(self._engine, "connect", _overwrite_deleted)
        self._holders: dict[str, sa.Connection] = {}

    def open(self) -> Ledger:
        """Create the tables where they are missing, and return self."""
        if self._url.get_backend_name() == "sqlite" and self._url.database:
            Path(self._url.database).parent.mkdir(parents=True, exist_ok=True)
        try:
            _METADATA.create_all(self._engine)
        except sa.exc.OperationalError as error:
            where = shown_url(self._url)
            raise LedgerError(f"ledger {where}: {first_line(error)}; check 'ledger' in recsys_llm.yaml") from None
        return self

    def close(self) -> None:
        """Give back the connections."""
        self._engine.dispose()

    @contextmanager
    def lock(self, view: str, *, wait: float = 0.0) -> Iterator[None]:
        """Hold ``view`` for one run; it is free again when the process dies, or loses its connection.

        On Postgres this is an advisory lock, for all machines that share the ledger: values are recorded over the
        connection that holds it, so a run that has lost the lock can't record. Elsewhere it is a lock on a file.

        Parameters
        ----------
        wait
            Seconds to wait for another run to end.

        Raises
        ------
        LedgerError
            Another run holds the view.
        """
        if self._url.get_backend_name() == "postgresql":
            with self._engine.connect() as connection, advisory_lock(connection, view, wait):
                self._holders[view] = connection
                try:
                    yield
                finally:
                    del self._holders[view]
        else:
            with file_lock(self._lock_directory, view, wait):
                yield

    def check(self, view: str, fingerprint: str) -> None:
        """Refuse a model other than the one whose values ``view`` holds; an empty view takes any.

        Raises
        ------
        FingerprintError
            The view holds values of another model.
        """
        bound = self.fingerprint(view)
        if bound is not None and bound != fingerprint:
            raise FingerprintError(
                f"view {view} holds values of fingerprint {bound}, the model or settings at hand have {fingerprint}; "
                "they must not be mixed: add a view of a new version (such as _v2) with the new model, or restore the "
                "old model and settings"
            )

    def unknown(self, view: str, join_key: str, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Return the rows of ``batch`` whose content is not the current one of their key and time, in their order."""
        current: dict[tuple[str, int], bytes] = {}
        columns = (_VALUES.c.entity_key, _VALUES.c.event_micros, _VALUES.c.content_hash)
        with self._engine.connect() as connection:
            for some in _slices(pc.unique(batch.column(join_key)).to_pylist()):
                query = sa.select(*columns).where(_VALUES.c.view == view, _VALUES.c.entity_key.in_(some))
                current.update(((key, micros), content) for key, micros, content in connection.execute(query))
        if not current:
            return batch
        pairs = zip(batch.column(join_key).to_pylist(), _micros(batch), strict=True)
        contents = batch.column(CONTENT_HASH).to_pylist()
        is_new = [current.get(pair) != content for pair, content in zip(pairs, contents, strict=True)]
        return batch.filter(pa.array(is_new, pa.bool_()))

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

    def record(self, view: str, fingerprint: str, join_key: str, part: str, table: pa.Table) -> None:
        """Commit a part and its values, all or nothing, and bind the view; recording the same again changes nothing."""
        rows = {
            (key, micros): content
            for key, micros, content in zip(
                table.column(join_key).to_pylist(), _micros(table), table.column(CONTENT_HASH).to_pylist(), strict=True
            )
        }
        of_row = (_VALUES.c.entity_key == sa.bindparam("key")) & (_VALUES.c.event_micros == sa.bindparam("micros"))
        with self._transaction(view) as connection:
            if rows:
                replaced = [{"key": key, "micros": micros} for key, micros in rows]
                connection.execute(_VALUES.delete().where(_VALUES.c.view == view, of_row), replaced)
                connection.execute(
                    _VALUES.insert(),
                    [
                        {"view": view, "entity_key": key, "event_micros": micros, "content_hash": content}
                        for (key, micros), content in rows.items()
                    ],
                )
            connection.execute(_PARTS.delete().where(_PARTS.c.view == view, _PARTS.c.part == part))
            connection.execute(_PARTS.insert().values(view=view, part=part, rows=table.num_rows))
            connection.execute(_VIEWS.delete().where(_VIEWS.c.view == view))
            connection.execute(_VIEWS.insert().values(view=view, fingerprint=fingerprint))

    def is_published(self, view: str, store: str) -> bool:
        """Return whether the online store of this identity holds the rows of ``view``."""
        query = sa.select(_STORES.c.store).where(_STORES.c.view == view, _STORES.c.store == store)
        with self._engine.connect() as connection:
            return connection.scalar(query) is not None

    def mark_published(self, view: str, store: str) -> None:
        """Note that the online store of this identity holds the rows of ``view``."""
        if not self.is_published(view, store):
            with self._engine.begin() as connection:
                connection.execute(_STORES.insert().values(view=view, store=store))

    def forget(self, view: str) -> None:
        """Drop all that is known of ``view``: the next run rebuilds it from the parts, and publishes them again."""
        with self._engine.begin() as connection:
            for table in (_VALUES, _PARTS, _VIEWS, _STORES, _INTERVALS):
                connection.execute(table.delete().where(table.c.view == view))

    def note_interval(self, view: str, registry: str, start: int, end: int, ended: int) -> None:
        """Note that a run of (start, end] ended well; all in microseconds since the epoch."""
        key = {"view": view, "registry": registry, "start_micros": start, "end_micros": end}
        same = sa.and_(*(_INTERVALS.c[name] == value for name, value in key.items()))
        with self._engine.begin() as connection:
            connection.execute(_INTERVALS.delete().where(same))
            connection.execute(_INTERVALS.insert().values(**key, ended_micros=ended))

    def intervals(self, view: str, registry: str, since: int) -> set[tuple[int, int]]:
        """Return the intervals of the runs that ended at ``since`` or later."""
        query = sa.select(_INTERVALS.c.start_micros, _INTERVALS.c.end_micros).where(
            _INTERVALS.c.view == view, _INTERVALS.c.registry == registry, _INTERVALS.c.ended_micros >= since
        )
        with self._engine.connect() as connection:
            return {(start, end) for start, end in connection.execute(query)}

    def views(self) -> set[str]:
        """Return the names of the views that values are recorded of."""
        with self._engine.connect() as connection:
            return set(connection.scalars(sa.select(_VIEWS.c.view)))

    def parts(self, view: str) -> set[str]:
        """Return the names of the committed parts of ``view``."""
        return self._parts(view, _PARTS.c.rows >= 0)

    def retired(self, view: str) -> set[str]:
        """Return the names of parts whose rows others hold: their files are to be removed."""
        return self._parts(view, _PARTS.c.rows == _RETIRED)

    def replace(self, view: str, old: Sequence[str], new: Mapping[str, int], *, forgotten: Sequence[str] = ()) -> None:
        """Retire parts, commit those that hold their rows, and drop the values of ``forgotten`` keys, all or nothing.

        Parameters
        ----------
        new
            Name of a part to its number of rows.
        """
        with self._transaction(view) as connection:
            connection.execute(
                _PARTS.update().where(_PARTS.c.view == view, _PARTS.c.part.in_(old)).values(rows=_RETIRED)
            )
            connection.execute(_PARTS.delete().where(_PARTS.c.view == view, _PARTS.c.part.in_(list(new))))
            for part, rows in new.items():
                connection.execute(_PARTS.insert().values(view=view, part=part, rows=rows))
            if forgotten:
                mine = (_VALUES.c.view == view) & _VALUES.c.entity_key.in_(list(forgotten))
                connection.execute(_VALUES.delete().where(mine))

    def drop_retired(self, view: str) -> None:
        """Forget retired parts; their files are gone."""
        with self._transaction(view) as connection:
            connection.execute(_PARTS.delete().where(_PARTS.c.view == view, _PARTS.c.rows == _RETIRED))

    def fingerprint(self, view: str) -> str | None:
        """Return the fingerprint that ``view`` is bound to; None for an empty one."""
        with self._engine.connect() as connection:
            found: str | None = connection.scalar(sa.select(_VIEWS.c.fingerprint).where(_VIEWS.c.view == view))
            return found

    def count_key(self, view: str, key: str) -> int:
        """Return the number of recorded values of one key."""
        query = sa.select(sa.func.count()).where(_VALUES.c.view == view, _VALUES.c.entity_key == key)
        with self._engine.connect() as connection:
            return int(connection.scalar(query) or 0)

    def _parts(self, view: str, which: sa.ColumnElement[bool]) -> set[str]:
        with self._engine.connect() as connection:
            return set(connection.scalars(sa.select(_PARTS.c.part).where(_PARTS.c.view == view, which)))

    @contextmanager
    def _transaction(self, view: str) -> Iterator[sa.Connection]:
        """Begin one on the connection that holds the view, where one does."""
        if view not in self._holders:
            with self._engine.begin() as connection:
                yield connection
            return
        connection = self._holders[view]
        try:
            with connection.begin():
                yield connection
        except sa.exc.OperationalError as error:
            raise LedgerError(
                f"view {view}: the connection to the ledger was lost, and the lock with it ({_reason(error)}); run the "
                "command again: what is recorded is kept"
            ) from None

    def count(self, view: str) -> int:
        """Return the number of recorded values of ``view``."""
        query = sa.select(sa.func.count()).select_from(_VALUES).where(_VALUES.c.view == view)
        with self._engine.connect() as connection:
            return int(connection.scalar(query) or 0)


def _overwrite_deleted(connection: Any, _record: Any) -> None:
    """Let sqlite write zeros over what is deleted: ids of people that were forgotten."""
    connection.execute("PRAGMA secure_delete = ON")


def _reason(error: sa.exc.DBAPIError) -> str:
    return str(error.orig).strip().partition("\n")[0]


def _micros(rows: pa.RecordBatch | pa.Table) -> list[int]:
    return list(rows.column(EVENT_TIMESTAMP).cast(pa.int64()).to_pylist())


def _slices(keys: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for first in range(0, len(keys), _KEYS_PER_QUERY):
        yield keys[first : first + _KEYS_PER_QUERY]
