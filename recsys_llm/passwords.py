"""Passwords stay out of messages, logs and what objects show of themselves.

Those of databases are in URLs, which drivers and libraries quote in pieces when they can't read them: so they are read
here first, and refused without a word of theirs.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from recsys_llm.errors import ConfigError

if TYPE_CHECKING:
    import sqlalchemy as sa

_PASSWORD = re.compile(
    r"""(\w[\w+.-]*://[^\s:/@]*:)\S+(@)"""
    # A comma belongs to it unless another setting follows; in a dict, quotes end it.
    r"""|(\b(?:password|passwd|pwd)(?:\s*=\s*|["']\s*:\s*["']))(?:(?!,\w+=)[^\s;&"'])+""",
    re.IGNORECASE,
)


def without_passwords(text: str) -> str:
    """Return ``text`` with the passwords of URLs and settings replaced.

    Examples
    --------
    >>> without_passwords("postgresql+psycopg://me:se@cret@db/shop is down")
    'postgresql+psycopg://me:***@db/shop is down'
    >>> without_passwords("cache:6379,password=se/c,ret,ssl=true")
    'cache:6379,password=***,ssl=true'
    >>> without_passwords("{'host': 'cache', 'password': 'secret'}")
    "{'host': 'cache', 'password': '***'}"
    """
    return _PASSWORD.sub(lambda found: f"{found[1] or found[3]}***{found[2] or ''}", text)


def database_url(text: str, *, name: str) -> sa.URL:
    """Return an SQLAlchemy URL that is read.

    Parameters
    ----------
    text
        Such as ``postgresql+psycopg://user:password@host/database``.
    name
        Of the setting, in messages.

    Raises
    ------
    ConfigError
        It is none, or holds characters of a password that have to be percent-encoded; nothing of it is shown.

    Examples
    --------
    >>> database_url("postgresql+psycopg://me:p%40ss@db:5432/shop", name="ledger").password
    'p@ss'
    >>> database_url("postgresql+psycopg://me:p@ss:w@db:5432/shop", name="ledger")
    Traceback (most recent call last):
    recsys_llm.errors.ConfigError: ledger: no SQLAlchemy URL such as postgresql+psycopg://user:password@host/database; \
in a password, write @ as %40, : as %3A, / as %2F and % as %25
    """
    import sqlalchemy as sa

    try:
        url = sa.make_url(text)
    except (sa.exc.ArgumentError, ValueError):  # a port that is no number is quoted in a ValueError
        url = None
    if url is None or (url.host is not None and "@" in url.host + (url.database or "")):
        raise ConfigError(
            f"{name}: no SQLAlchemy URL such as postgresql+psycopg://user:password@host/database; in a password, "
            "write @ as %40, : as %3A, / as %2F and % as %25"
        ) from None
    return url


def first_line(error: Exception) -> str:
    """Return the first line of what a database's driver says, without passwords."""
    reason = str(getattr(error, "orig", None) or error).strip()
    return without_passwords(reason.splitlines()[0] if reason else type(error).__name__)


def hide_in_feast() -> None:
    """Let Feast's configuration, and with it ``repr`` of a feature store, show no password, in this process."""
    from feast.repo_config import RegistryConfig, RepoConfig

    for config in (RepoConfig, RegistryConfig):
        if not hasattr(config.__repr_args__, "__wrapped__"):
            config.__repr_args__ = _hidden(config.__repr_args__)


def _hidden(arguments: Callable[[Any], Any]) -> Callable[[Any], Any]:
    @functools.wraps(arguments)
    def hidden(self: Any) -> Any:
        return [(name, _masked(value)) for name, value in arguments(self)]

    return hidden


def _masked(value: Any) -> Any:
    if isinstance(value, dict):
        # By its name too: a password alone, such as that of Feast's own stores, looks like any other text.
        return {key: "***" if _is_secret(key, inner) else _masked(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_masked(inner) for inner in value]
    return without_passwords(value) if isinstance(value, str) else value


def _is_secret(key: Any, value: Any) -> bool:
    return isinstance(value, str | int) and str(key).lower() in ("password", "passwd", "pwd", "token", "client_secret")
