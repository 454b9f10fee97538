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
    # The name of a user may hold an at sign: some hosts want user@server.
    r"""(?P<url>\b[a-z][\w+.-]{0,40}://[^\s:/]*:)\S+(?=@)"""
    r"""|(?P<setting>(?:password|passwd|pwd)(?:\s*=\s*|["']\s*:\s*))"""
    # A comma belongs to it unless another setting follows; quotes around it end it.
    r"""(?:(?P<quote>["'])(?:(?!(?P=quote)).)*|(?:(?!,\w+=)[^\s;&"'])+)""",
    re.IGNORECASE,
)

_SECRET_WORDS = {"password", "passwd", "pwd", "passphrase", "secret", "token", "credential", "credentials"}


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
    return _PASSWORD.sub(lambda found: f"{found['url'] or found['setting']}{found['quote'] or ''}***", text)


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
in a password, write @ as %40, : as %3A, / as %2F, ? as %3F, % as %25 and a space as %20
    """
    import sqlalchemy as sa

    try:
        url = sa.make_url(text)
    except (sa.exc.ArgumentError, ValueError):  # a port that is no number is quoted in a ValueError
        url = None
    behind_user = text.partition("://")[2].partition(":")[2]
    if url is None or (url.host is not None and (behind_user.count("@") > 1 or re.search(r"\s", text))):
        raise ConfigError(
            f"{name}: no SQLAlchemy URL such as postgresql+psycopg://user:password@host/database; in a password, "
            "write @ as %40, : as %3A, / as %2F, ? as %3F, % as %25 and a space as %20"
        )
    return url


def shown_url(url: sa.URL) -> str:
    """Return a URL for messages: without its password, and without its query, which may hold one too.

    Examples
    --------
    >>> shown_url(database_url("postgresql+psycopg://db/shop?user=me&password=secret", name="ledger"))
    'postgresql+psycopg://db/shop'
    """
    return url.set(query={}).render_as_string(hide_password=True)


def first_line(error: Exception) -> str:
    """Return the first line of what a database's driver says, without passwords."""
    reason = str(getattr(error, "orig", None) or error).strip()
    return without_passwords(reason.splitlines()[0] if reason else type(error).__name__)


def masked(value: Any) -> Any:
    """Return plain data without passwords: each of its texts by :func:`without_passwords`, and what is named as one.

    Examples
    --------
    >>> masked({"password": "secret", "urls": ["redis://:secret@cache"], "port": 6379})
    {'password': '***', 'urls': ['redis://:***@cache'], 'port': 6379}
    """
    if isinstance(value, dict):
        # By its name too: a password alone, such as that of Feast's own stores, looks like any other text.
        hide = {key for key, inner in value.items() if isinstance(inner, str | int) and is_secret(key)}
        return {key: "***" if key in hide else masked(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [masked(inner) for inner in value]
    return without_passwords(value) if isinstance(value, str) else value


def hide_in_feast() -> None:
    """Let Feast's configuration, and with it ``repr`` of a feature store, show no password, in this process."""
    from feast.repo_config import RegistryConfig, RepoConfig

    for config in (RepoConfig, RegistryConfig):
        if not hasattr(config.__repr_args__, "__wrapped__"):
            config.__repr_args__ = _hidden(config.__repr_args__)


def _hidden(arguments: Callable[[Any], Any]) -> Callable[[Any], Any]:
    @functools.wraps(arguments)
    def hidden(self: Any) -> Any:
        return [(name, masked(value)) for name, value in arguments(self)]

    return hidden


def is_secret(name: Any) -> bool:
    """Return whether a setting of this name holds a secret; ``password_env`` and ``password_file`` say where one is.

    Examples
    --------
    >>> [name for name in ("ssl_password", "client_secret", "password_env", "max_tokens") if is_secret(name)]
    ['ssl_password', 'client_secret']
    """
    *_, last = words = re.split(r"[\W_]+", str(name).lower())
    return last not in ("env", "file") and not _SECRET_WORDS.isdisjoint(words)
