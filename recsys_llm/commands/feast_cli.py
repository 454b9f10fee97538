"""Running the real ``feast`` command of this environment."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from recsys_llm.errors import RecsysLLMError


class FeastCommandError(RecsysLLMError):
    """A ``feast`` command failed; the message holds all that it printed."""


def run_feast(repository: Path, *arguments: str) -> list[str]:
    """Run ``feast -c REPOSITORY ARGUMENTS`` and return the lines that it printed.

    Raises
    ------
    FeastCommandError
        It ended with another exit code than 0.
    """
    beside = Path(sys.executable).with_name("feast")
    program = str(beside) if beside.is_file() else shutil.which("feast")
    if program is None:
        raise FeastCommandError(
            "no `feast` command beside this Python; install the package into an environment of its own"
        )
    command = [program, "-c", str(repository), *arguments]
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        # A terminal shows the engine's progress bar; elsewhere stderr is kept for the message of a failure.
        stderr=None if sys.stderr.isatty() else subprocess.PIPE,
        text=True,
        check=False,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    if done.returncode != 0:
        raise FeastCommandError(
            f"`{' '.join(command)}` ended with {done.returncode}:\n{done.stdout}{done.stderr or ''}"
        )
    return done.stdout.splitlines()
