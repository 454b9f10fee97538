"""Log lines: JSON with fields where stderr is no terminal, no passwords, and nothing set up by an import."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

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
