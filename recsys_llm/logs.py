"""Log lines: JSON where a machine reads stderr, for people on a terminal.

A library sets up nothing: :func:`configure` is called by the commands, and by the engine inside ``feast``.
"""

from __future__ import annotations

import json
import logging
import math
import sys
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.logging import RichHandler

from recsys_llm.passwords import masked, without_passwords

NAME = "recsys_llm"

_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
"""Attributes that every record has; the others are fields that the caller gave as ``extra``."""


def configure(level: int = logging.INFO) -> None:
    """Send what this package logs to stderr; a second call changes nothing, nor is another logger touched."""
    logger = logging.getLogger(NAME)
    if logger.handlers:
        return
    if sys.stderr.isatty():
        handler: logging.Handler = RichHandler(console=Console(stderr=True), show_path=False, rich_tracebacks=False)
        handler.setFormatter(HumanFormatter())
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(JsonFormatter())
    logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False  # Feast's command has a handler of its own at the root


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message, then the fields.

    Examples
    --------
    >>> record = logging.makeLogRecord({"name": "recsys_llm", "levelname": "INFO", "msg": "done", "rows": 3})
    >>> line = json.loads(JsonFormatter().format(record))
    >>> line["message"], line["rows"]
    ('done', 3)
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; passwords are left out."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: value for name, value in _fields(record).items() if name not in line}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(_plain(masked(line)), ensure_ascii=False)


class HumanFormatter(logging.Formatter):
    """The message, and the fields behind it."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; passwords are left out."""
        fields = " ".join(f"{name}={value}" for name, value in _fields(record).items())
        return without_passwords(f"{super().format(record)} {fields}".rstrip())


def _plain(value: Any) -> Any:
    """Return what JSON can hold: it has no NaN, no keys but texts, and none of the other types."""
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    if value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return without_passwords(str(value))


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name not in _OWN and not name.startswith("_")}
