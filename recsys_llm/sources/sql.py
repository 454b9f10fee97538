"""A table that is a query on any database that SQLAlchemy speaks to.

The query runs as a subquery; time range and order are added around it with bound parameters, and rows come through a
server-side cursor. A connection that is lost while sorted rows are read is opened again, and reading goes on by key. A
database must hand out timestamps with a time zone (Postgres ``timestamptz``, SQL Server ``datetimeoffset``, Oracle
``timestamp with time zone``...): a naive value could mean any instant and is refused. sqlite has no type for time;
there, texts in ISO 8601 with an offset are read (:mod:`recsys_llm.sources.iso_text`).
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, NoSuchModuleError, OperationalError, SQLAlchemyError

from recsys_llm.databases import open_engine
from recsys_llm.errors import ConfigError, DataError, RecsysLLMError, RowError, SchemaError
from recsys_llm.passwords import database_url, first_line, shown_url
from recsys_llm.sources.base import BATCH_ROWS, Predicate, rechunk, require_columns, require_timestamp
from recsys_llm.sources.iso_text import SQL_FUNCTION, IsoTextReader
from recsys_llm.sources.keyset import NULLS_LAST, KeyGroups, after
from recsys_llm.sources.sql_values import arrow_type, to_array
from recsys_llm.timestamps import BEGINNING, as_utc, to_micros

FETCH_ROWS = 2048
"""Rows per round trip of the cursor."""

SAMPLE_ROWS = 1000
"""Rows from whose values the column types are inferred."""

BINARY_COLLATIONS = {
    "postgresql": "C",
    "sqlite": "BINARY",
    "mysql": "utf8mb4_bin",
    "mariadb": "utf8mb4_bin",
    "mssql": "Latin1_General_BIN2",
}
"""Collation per dialect that sorts texts by code point; readers check the order in any case."""

RESUMES = 5
"""Attempts in a row to go on after a lost connection; a row that arrives in between starts the count anew."""

PAUSE_SECONDS = 1.0
"""Before the first of them; the n-th waits n times as long."""


class _LostConnectionError(DataError):
    """The database went away, or ended the connection."""


class SqlSource:
    """A :class:`recsys_llm.sources.Source` over a SQL query.

    Column types are inferred from the first :data:`SAMPLE_ROWS` rows: ``numeric`` becomes float64, ``uuid`` and JSON
    become texts.

    Parameters
    ----------
    url
        SQLAlchemy URL, such as ``postgresql+psycopg://user:password@host/database`` or ``sqlite:////data/shop.db``.
    query
        One SELECT statement, without parameters.
    timestamp
        Column of the query with the rows' time.
    name
        Name of the table in messages.

    Raises
    ------
    ConfigError
        The URL is none, or its driver is not installed.
    """

    def __init__(self, url: str, query: str, *, timestamp: str, name: str) -> None:
        self._url = database_url(url, name=f"{name}: 'sql'")
        try:
            self._dialect = self._url.get_dialect().name
        except NoSuchModuleError as error:
            raise ConfigError(f"{name}: {error}; install the SQLAlchemy dialect of this database") from None
        self._query = query
        self.timestamp = timestamp
        self.name = f"{name} ({shown_url(self._url)})"

    def schema(self) -> Any:
        """Return the Arrow schema of the query, as far as its values show it.

        Raises
        ------
        DataError
            The database can't be reached, or refuses the query.
        SchemaError
            Two columns have the same name, or a column mixes types.
        """
        return self._schema

    def batches(
        self,
        columns: Sequence[str] | None = None,
        *,
        start: datetime | None = None,
        end: datetime | None = None,
        order_by: Sequence[str] = (),
        batch_rows: int = BATCH_ROWS,
        null_timestamps: bool | None = None,
    ) -> Iterator[Any]:
        """Yield the rows with ``start < timestamp <= end``; see :class:`recsys_llm.sources.Source`."""
        wanted = list(self._schema.names if columns is None else columns)
        require_columns(self._schema, [*wanted, *order_by], name=self.name)
        require_timestamp(self._schema, self.timestamp, name=self.name)
        nulls = start is None if null_timestamps is None else null_timestamps
        table = self._subquery(self._schema.names)
        keys = [self._sort_key(table, column) for column in order_by]
        statement = (
            sa.select(*[self._value(table, column) for column in wanted], *keys)
            .where(*self._where(table, start, end, nulls))
            .order_by(*keys)
        )
        return rechunk(self._read(statement, wanted, min(batch_rows, FETCH_ROWS), keys, order_by), batch_rows)

    def rows(self, columns: Sequence[str], predicate: Predicate, *, limit: int = 2) -> list[str]:
        """Return where the first rows that meet ``predicate`` are, as row numbers of the query without an order."""
        table = self._subquery(self._schema.names)
        statement = sa.select(*[self._value(table, column) for column in columns])
        found: list[str] = []
        offset = 0
        for batch in self._read(statement, list(columns), FETCH_ROWS):
            for index in pc.indices_nonzero(predicate(batch)).to_pylist():
                found.append(f"row {offset + index}")
                if len(found) == limit:
                    return found
            offset += batch.num_rows
        return found

    @cached_property
    def _schema(self) -> Any:
        bare: Any = sa.select(sa.literal_column("*")).select_from(self._subquery([]))
        with self._connect() as connection:
            result = connection.execute(bare.limit(SAMPLE_ROWS))
            names = [str(key) for key in result.keys()]
            values = dict(zip(names, zip(*result.all(), strict=True), strict=False))
        for column in names:
            if names.count(column) > 1:
                raise SchemaError(f"{self.name}: the query returns two columns {column!r}; rename one with AS")
        return pa.schema([(column, self._type(column, values.get(column, ()), names)) for column in names])

    def _type(self, column: str, values: Sequence[Any], names: list[str]) -> Any:
        """Return the Arrow type of ``values``, or of the first value elsewhere in the query where all are null."""
        known = [value for value in values if value is not None]
        if not known and len(values) == SAMPLE_ROWS:
            table = self._subquery(names)
            with self._connect() as connection:
                statement = sa.select(table.c[column]).where(table.c[column].is_not(None)).limit(1)
                known = list(connection.execute(statement).scalars())
        if self._is_iso_text(column):
            for value in known:
                IsoTextReader(self.name, self.timestamp).micros(value)
            return pa.timestamp("us", tz="UTC") if known else pa.null()
        return arrow_type(known, column, name=self.name)

    def _read(
        self,
        statement: Any,
        columns: list[str],
        fetch_rows: int,
        keys: Sequence[Any] = (),
        order_by: Sequence[str] = (),
    ) -> Iterator[Any]:
        """Yield the rows of a statement whose last columns are its sort keys.

        A sorted result goes on where it stopped when the connection is lost: no row comes twice, none is left out.
        """
        types = [self._schema.field(column).type for column in columns]
        offset = failures = 0
        groups = KeyGroups(len(keys))
        while True:
            try:
                for rows in self._partitions(self._going_on(statement, keys, order_by, groups), fetch_rows, groups):
                    fields = zip(columns, types, zip(*rows, strict=True), strict=False)  # sort keys come last
                    arrays = [
                        to_array(values, kind, name=self.name, column=column, offset=offset)
                        for column, kind, values in fields
                    ]
                    offset += len(rows)
                    failures = 0
                    yield pa.record_batch(arrays, names=columns)
                return
            except _LostConnectionError:
                failures += 1
                if not keys or failures > RESUMES:
                    raise
                groups.forget()
                time.sleep(PAUSE_SECONDS * failures)

    def _partitions(self, statement: Any, fetch_rows: int, groups: KeyGroups) -> Iterator[list[Sequence[Any]]]:
        with self._connect(going_on=groups.position is not None) as connection:
            streaming = connection.execution_options(stream_results=True, yield_per=fetch_rows)
            with streaming.execute(statement) as result:  # also closes the cursor on the server
                for rows in result.partitions():
                    if whole := groups.add(rows):
                        yield whole
                if rest := groups.rest():
                    yield rest

    def _going_on(self, statement: Any, keys: Sequence[Any], order_by: Sequence[str], groups: KeyGroups) -> Any:
        """Return the statement, from the row on after which the connection was lost."""
        if groups.position is None:
            return statement
        values = [self._bound_key(*pair) for pair in zip(order_by, groups.position, strict=True)]
        return statement.where(after(keys, values, nulls_last=self._dialect in NULLS_LAST))

    def _bound_key(self, column: str, value: Any) -> Any:
        if column == self.timestamp and isinstance(value, datetime):
            return self._bound(value)
        return None if value is None else sa.bindparam(None, value)

    @contextmanager
    def _connect(self, *, going_on: bool = False) -> Iterator[sa.Connection]:
        """Open a connection of our own; what the database says against it becomes a DataError without the password."""
        file = self._url.database
        if (
            self._dialect == "sqlite"
            and file
            and not file.startswith((":memory:", "file:"))
            and not Path(file).is_file()
        ):
            raise DataError(f"{self.name}: the sqlite file does not exist")
        reader = IsoTextReader(self.name, self.timestamp)
        try:
            engine = open_engine(self._url, poolclass=sa.NullPool)
            if self._dialect == "sqlite":
                sa.event.listen(engine, "connect", reader.register)
        except ModuleNotFoundError as error:
            raise ConfigError(f"{self.name}: the driver {error.name!r} is not installed; pip install it") from None
        try:
            with engine.connect() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise reader.problem or self._explained(error, going_on) from None
        finally:
            engine.dispose()

    def _explained(self, error: SQLAlchemyError, going_on: bool) -> RecsysLLMError:
        reason = first_line(error)
        if "Could not decode to UTF-8" in reason:
            return RowError(f"{self.name}: a text is not valid UTF-8: {reason}; correct the row")
        if isinstance(error, DBAPIError) and (
            error.connection_invalidated or (going_on and isinstance(error, OperationalError))
        ):
            return _LostConnectionError(f"{self.name}: the connection was lost: {reason}; run the command again")
        return DataError(f"{self.name}: the database answered: {reason}; check 'sql' and 'query' in recsys_llm.yaml")

    def _subquery(self, columns: Sequence[str]) -> Any:
        """Return the query as a subquery; its colons are text, not parameters."""
        text = re.sub(r"(?<![:\w\\]):(?=\w)", r"\\:", self._query.strip().rstrip(";"))
        quoted: list[Any] = [sa.column(sa.sql.quoted_name(column, quote=True)) for column in columns]
        return sa.text(text + "\n").columns(*quoted).subquery("source")  # the newline ends a trailing comment

    def _is_iso_text(self, column: str) -> bool:
        return column == self.timestamp and self._dialect == "sqlite"

    def _value(self, table: Any, column: str) -> Any:
        if self._is_iso_text(column):
            return getattr(sa.func, SQL_FUNCTION)(table.c[column], type_=sa.BigInteger).label(column)
        return table.c[column]

    def _bound(self, value: datetime) -> Any:
        if self._dialect == "sqlite":
            return sa.bindparam(None, to_micros(value), type_=sa.BigInteger)
        return sa.bindparam(None, as_utc(value), type_=sa.DateTime(timezone=True))

    def _where(self, table: Any, start: datetime | None, end: datetime | None, nulls: bool) -> list[Any]:
        time = self._value(table, self.timestamp)
        time = time.element if isinstance(time, sa.Label) else time
        after = [] if start is None else [time > self._bound(start)]
        inside = [*after, *([] if end is None else [time <= self._bound(end)])]
        if not inside:
            return [] if nulls else [table.c[self.timestamp].is_not(None)]
        return [sa.or_(sa.and_(*inside), table.c[self.timestamp].is_(None))] if nulls else inside

    def _sort_key(self, table: Any, column: str) -> Any:
        if column == self.timestamp:
            time = self._value(table, column)
            return sa.func.coalesce(time.element if isinstance(time, sa.Label) else time, self._bound(BEGINNING))
        text = sa.cast(table.c[column], sa.Text)
        collation = BINARY_COLLATIONS.get(self._dialect)
        return text if collation is None else sa.collate(text, collation)
