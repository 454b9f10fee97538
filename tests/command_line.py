"""The command line, run in the tests' own process: another one spends seconds on imports."""

from __future__ import annotations

import contextlib
import io
import logging
import subprocess
import sys
from collections.abc import Iterator
from unittest import mock

from recsys_llm import logs
from recsys_llm.cli import main


def run_main(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ``recsys-llm ARGUMENTS`` through its entry point; exit code and output are those of a process."""
    out, err = io.StringIO(), io.StringIO()
    code: int | str | None = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), _own_logging():
        try:
            with mock.patch.object(sys, "argv", ["recsys-llm", *arguments]):
                main()
        except SystemExit as left:
            code = left.code
    assert code is None or isinstance(code, int), code
    return subprocess.CompletedProcess(arguments, code or 0, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def _own_logging() -> Iterator[None]:
    """Let each run set up logging, as a process does: a handler keeps the stderr that it was made with."""
    logger = logging.getLogger(logs.NAME)
    kept = logger.handlers, logger.level, logger.propagate
    logger.handlers = []
    try:
        yield
    finally:
        logger.handlers, level, logger.propagate = kept
        logger.setLevel(level)
