"""The ledger: which values have been computed, so that none is computed twice.

For each view: the current content hash of each (entity key, time), the committed part files, the fingerprint that the
view is bound to, and the online stores that hold its rows. Any SQLAlchemy URL will do. The parts are the truth and
the ledger is an index of them: a lost ledger is rebuilt from the parts (:mod:`recsys_llm.producers.pipeline`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa

from recsys_llm.databases import open_engine
from recsys_llm.errors import ConfigError, FingerprintError, LedgerError
from recsys_llm.passwords import database_url, first_line, shown_url
from recsys_llm.producers.ledger_tables import INTERVALS, PARTS, RETIRED, STORES, VALUES, VIEWS, create_tables
from recsys_llm.producers.locks import AdvisoryLock, file_lock
from recsys_llm.schema import CONTENT_HASH, EVENT_TIMESTAMP

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
        self._url = database_url(url, name="ledger")
        self._lock_directory = lock_directory
        try:
            self._engine = open_engine(self._url)
        except (sa.exc.NoSuchModuleError, ModuleNotFoundError) as error:
            raise ConfigError(f"ledger: {error}; install the driver of this database") from None
        if self._url.get_backend_name() == "sqlite":
            sa.event.listen(self._engine, "connect", _overwrite_deleted)
        if self._engine.driver == "psycopg":
            from recsys_llm.producers.silence import watch  # the driver is an extra

            watch(self._engine)
        self._locks: dict[str, AdvisoryLock] = {}

    def open(self) -> Ledger:
        """Create the tables where they are missing, and return self."""
        if self._url.get_backend_name() == "sqlite" and self._url.database:
            Path(self._url.database).parent.mkdir(parents=True, exist_ok=True)
        with self._explained():
            create_tables(self._engine, self._lock_directory)
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
        if self._url.get_backend_name() != "postgresql":
            with file_lock(self._lock_directory, view, wait):
                yield
            return
        with ExitStack() as stack:
            with self._explained():
                lock = AdvisoryLock(stack.enter_context(self._engine.connect()), view)
                stack.enter_context(lock.held(wait))
            self._locks[view] = lock
            stack.callback(self._locks.pop, view)
            yield

    def check_lock(self, view: str) -> None:
        """Refuse to go on where the run that holds ``view`` has lost its lock: another may be writing it by now.

        Raises
        ------
        LedgerError
            The session of the lock has ended.
        """
        lock = self._locks.get(view)
        if lock is None:  # a file's lock lasts as long as its process
            return
        try:
            is_held, reason = lock.is_held(), "its session has ended"
        except sa.exc.DBAPIError as error:
            is_held, reason = False, first_line(error)
        if not is_held:
            raise _lost_lock(view, reason)

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
        columns = (VALUES.c.entity_key, VALUES.c.event_micros, VALUES.c.content_hash)
        with self._connected() as connection:
            for some in _slices(pc.unique(batch.column(join_key)).to_pylist()):
                query = sa.select(*columns).where(VALUES.c.view == view, VALUES.c.entity_key.in_(some))
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
        newest = sa.func.max(VALUES.c.event_micros)
        with self._connected() as connection:
            for some in _slices(keys):
                query = (
                    sa.select(VALUES.c.entity_key, newest)
                    .where(VALUES.c.view == view, VALUES.c.entity_key.in_(some))
                    .group_by(VALUES.c.entity_key)
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
        of_row = (VALUES.c.entity_key == sa.bindparam("key")) & (VALUES.c.event_micros == sa.bindparam("micros"))
        with self._transaction(view) as connection:
            if rows:
                replaced = [{"key": key, "micros": micros} for key, micros in rows]
                connection.execute(VALUES.delete().where(VALUES.c.view == view, of_row), replaced)
                connection.execute(
                    VALUES.insert(),
                    [
                        {"view": view, "entity_key": key, "event_micros": micros, "content_hash": content}
                        for (key, micros), content in rows.items()
                    ],
                )
            connection.execute(PARTS.delete().where(PARTS.c.view == view, PARTS.c.part == part))
            connection.execute(PARTS.insert().values(view=view, part=part, rows=table.num_rows))
            connection.execute(VIEWS.delete().where(VIEWS.c.view == view))
            connection.execute(VIEWS.insert().values(view=view, fingerprint=fingerprint))

    def is_published(self, view: str, store: str) -> bool:
        """Return whether the online store of this identity holds the rows of ``view``."""
        query = sa.select(STORES.c.store).where(STORES.c.view == view, STORES.c.store == store)
        with self._connected() as connection:
            return connection.scalar(query) is not None

    def mark_published(self, view: str, store: str) -> None:
        """Note that the online store of this identity holds the rows of ``view``."""
        if not self.is_published(view, store):
            with suppress(sa.exc.IntegrityError), self._begun() as connection:  # another has noted it, just now
                connection.execute(STORES.insert().values(view=view, store=store))

    def forget(self, view: str) -> None:
        """Drop all that is known of ``view``: the next run rebuilds it from the parts, and publishes them again."""
        with self._begun() as connection:
            for table in (VALUES, PARTS, VIEWS, STORES, INTERVALS):
                connection.execute(table.delete().where(table.c.view == view))

    def note_interval(self, view: str, registry: str, start: int, end: int, ended: int) -> None:
        """Note that a run of (start, end] ended well; all in microseconds since the epoch. Runs may do so at once."""
        key = {"view": view, "registry": registry, "start_micros": start, "end_micros": end}
        same = sa.and_(*(INTERVALS.c[name] == value for name, value in key.items()))
        with self._begun() as connection:
            if connection.execute(INTERVALS.update().where(same).values(ended_micros=ended)).rowcount:
                return
        # An IntegrityError: the other one of two runs of the same interval has noted it, just now.
        with suppress(sa.exc.IntegrityError), self._begun() as connection:
            connection.execute(INTERVALS.insert().values(**key, ended_micros=ended))

    def intervals(self, view: str, registry: str, since: int) -> set[tuple[int, int]]:
        """Return the intervals of the runs that ended at ``since`` or later."""
        query = sa.select(INTERVALS.c.start_micros, INTERVALS.c.end_micros).where(
            INTERVALS.c.view == view, INTERVALS.c.registry == registry, INTERVALS.c.ended_micros >= since
        )
        with self._connected() as connection:
            return {(start, end) for start, end in connection.execute(query)}

    def views(self) -> set[str]:
        """Return the names of the views that values are recorded of."""
        with self._connected() as connection:
            return set(connection.scalars(sa.select(VIEWS.c.view)))

    def parts(self, view: str) -> set[str]:
        """Return the names of the committed parts of ``view``."""
        return self._parts(view, PARTS.c.rows >= 0)

    def retired(self, view: str) -> set[str]:
        """Return the names of parts whose rows others hold: their files are to be removed."""
        return self._parts(view, PARTS.c.rows == RETIRED)

    def replace(self, view: str, old: Sequence[str], new: Mapping[str, int], *, forgotten: Sequence[str] = ()) -> None:
        """Retire parts, commit those that hold their rows, and drop the values of ``forgotten`` keys, all or nothing.

        Parameters
        ----------
        new
            Name of a part to its number of rows.
        """
        with self._transaction(view) as connection:
            connection.execute(PARTS.update().where(PARTS.c.view == view, PARTS.c.part.in_(old)).values(rows=RETIRED))
            connection.execute(PARTS.delete().where(PARTS.c.view == view, PARTS.c.part.in_(list(new))))
            for part, rows in new.items():
                connection.execute(PARTS.insert().values(view=view, part=part, rows=rows))
            if forgotten:
                mine = (VALUES.c.view == view) & VALUES.c.entity_key.in_(list(forgotten))
                connection.execute(VALUES.delete().where(mine))

    def drop_retired(self, view: str) -> None:
        """Forget retired parts; their files are gone."""
        with self._transaction(view) as connection:
            connection.execute(PARTS.delete().where(PARTS.c.view == view, PARTS.c.rows == RETIRED))

    def fingerprint(self, view: str) -> str | None:
        """Return the fingerprint that ``view`` is bound to; None for an empty one."""
        with self._connected() as connection:
            found: str | None = connection.scalar(sa.select(VIEWS.c.fingerprint).where(VIEWS.c.view == view))
            return found

    def count_key(self, view: str, key: str) -> int:
        """Return the number of recorded values of one key."""
        query = sa.select(sa.func.count()).where(VALUES.c.view == view, VALUES.c.entity_key == key)
        with self._connected() as connection:
            return int(connection.scalar(query) or 0)

    def _parts(self, view: str, which: sa.ColumnElement[bool]) -> set[str]:
        with self._connected() as connection:
            return set(connection.scalars(sa.select(PARTS.c.part).where(PARTS.c.view == view, which)))

    def count(self, view: str) -> int:
        """Return the number of recorded values of ``view``."""
        query = sa.select(sa.func.count()).select_from(VALUES).where(VALUES.c.view == view)
        with self._connected() as connection:
            return int(connection.scalar(query) or 0)

    @contextmanager
    def _transaction(self, view: str) -> Iterator[sa.Connection]:
        """Begin one on the connection that holds the view, where one does."""
        lock = self._locks.get(view)
        if lock is None:
            with self._begun() as connection:
                yield connection
            return
        self.check_lock(view)
        with self._explained():
            try:
                with lock.connection.begin():
                    yield lock.connection
            except sa.exc.DBAPIError as error:
                if error.connection_invalidated:
                    raise _lost_lock(view, first_line(error)) from None
                raise

    @contextmanager
    def _connected(self) -> Iterator[sa.Connection]:
        with self._explained(), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def _begun(self) -> Iterator[sa.Connection]:
        with self._explained(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Say what is wrong with the database in our words: a driver's may quote ids of people."""
        try:
            yield
        except sa.exc.IntegrityError:
            raise  # the database works; the caller knows what it means
        except sa.exc.DBAPIError as error:
            raise LedgerError(
                f"ledger {shown_url(self._url)}: {first_line(error)}; check that it is up, and 'ledger' in "
                "recsys_llm.yaml, then run the command again: what is recorded is kept"
            ) from None


def _overwrite_deleted(connection: Any, _record: Any) -> None:
    """Let sqlite write zeros over what is deleted: ids of people that were forgotten."""
    connection.execute("PRAGMA secure_delete = ON")


def _lost_lock(view: str, reason: str) -> LedgerError:
    return LedgerError(
        f"view {view}: the connection to the ledger was lost, and the lock with it ({reason}); run the command again: "
        "what is recorded is kept"
    )


def _micros(rows: pa.RecordBatch | pa.Table) -> list[int]:
    return list(rows.column(EVENT_TIMESTAMP).cast(pa.int64()).to_pylist())


def _slices(keys: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for first in range(0, len(keys), _KEYS_PER_QUERY):
        yield keys[first : first + _KEYS_PER_QUERY]
