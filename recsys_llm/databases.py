"""Connections to databases of the user's: none waits for ever for a machine that is gone, no error shows a value."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

_LIBPQ_DRIVERS = ("psycopg", "psycopg2")
_LIBPQ_DEFAULTS = {
    "connect_timeout": 10,  # seconds
    "keepalives": 1,
    "keepalives_idle": 30,  # seconds
    "keepalives_interval": 10,  # seconds
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,  # milliseconds
}
"""Whatever a query takes, the machine at the other end acknowledges packets: only one that is gone is given up."""


def open_engine(url: sa.URL, **options: Any) -> sa.Engine:
    """Return an engine; it connects when first used.

    Parameters
    ----------
    url
        Its query overrides the time limits that Postgres is given here (``?connect_timeout=3``).
    options
        For :func:`sqlalchemy.create_engine`.

    Raises
    ------
    sqlalchemy.exc.NoSuchModuleError, ModuleNotFoundError
        Dialect or driver are not installed.
    """
    limits: dict[str, Any] = {}
    if url.get_backend_name() == "postgresql" and url.get_driver_name() in _LIBPQ_DRIVERS:
        limits = {name: value for name, value in _LIBPQ_DEFAULTS.items() if name not in url.query}
    # Bound values are ids of people; SQLAlchemy would print them below its errors.
    return sa.create_engine(url, hide_parameters=True, connect_args=limits, **options)
