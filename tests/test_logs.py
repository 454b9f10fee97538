"""Log lines: JSON with fields where stderr is no terminal, no passwords, and nothing set up by an import."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_llm.logs import JsonFormatter

LOGGING = """
import logging
import recsys_llm.engine, recsys_llm.retrieval
from recsys_llm import logs
before = (logging.getLogger().handlers, logging.getLogger("recsys_llm").handlers)
assert before == ([], []), before
for _ in range(2):
    logs.configure()
logger = logging.getLogger("recsys_llm.engine")
logger.info("materialized %s", "v", extra={"view": "v", "rows": 3, "seconds": 0.5})
try:
    raise ValueError("postgresql+psycopg://me:canary@secret@db/shop is down")
except ValueError:
    logger.exception("redis://:canary@host:6379 failed", extra={"url": "https://me:canary@host/x"})
logger.info('password="canary" of %s', {"password": "canary"}, extra={"options": {"password": "canary"}})
"""


@pytest.mark.security
def test_lines_are_json_with_fields_and_without_passwords():
    done = subprocess.run([sys.executable, "-c", LOGGING], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    first, second, third = map(json.loads, done.stderr.splitlines())
    assert first.pop("time").endswith("+00:00")
    assert first == {
        "level": "info",
        "logger": "recsys_llm.engine",
        "message": "materialized v",
        "view": "v",
        "rows": 3,
        "seconds": 0.5,
    }
    assert second["message"] == "redis://:***@host:6379 failed"
    assert "ValueError" in second["traceback"]
    assert third["message"] == "password=\"***\" of {'password': '***'}"
    assert third["options"] == {"password": "***"}
    assert "canary" not in done.stderr


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.just(Path("/tmp/x")),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers() | st.tuples(st.text()), inner),
)


def refused(constant: str) -> None:
    raise ValueError(constant)


@given(message=st.text(), value=VALUES)
def test_whatever_is_logged_each_line_is_json_as_any_parser_reads_it(message, value):
    record = logging.makeLogRecord({"name": "n", "levelname": "INFO", "msg": message, "value": value})
    line = JsonFormatter().format(record)
    assert "\n" not in line
    json.loads(line, parse_constant=refused)


@given(secret=st.text(st.characters(exclude_characters="\n\"'"), min_size=12), quote=st.sampled_from("\"'"))
def test_a_quoted_password_is_not_logged_whatever_it_is_made_of(secret, quote):
    record = logging.makeLogRecord({"name": "n", "levelname": "INFO", "msg": f"PASSWORD = {quote}{secret}{quote}."})
    assert json.loads(JsonFormatter().format(record))["message"] == f"PASSWORD = {quote}***{quote}."
