"""Child processes that are killed at the n-th Python call: anywhere in the work, at the same place each time."""

from __future__ import annotations

import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any


@dataclass
class _CallCounter:
    """Counts calls of Python functions, and ends the process at one of them."""

    kill_at: int | None
    calls: int = 0

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            self.calls += 1
            if self.calls == self.kill_at:
                os.kill(os.getpid(), signal.SIGKILL)


def spawn(work: Callable[[], None], *, kill_at: int | None = None, count: bool = False) -> tuple[int, int]:
    """Run ``work`` in a fork of this process, which has all modules loaded; return its pid and a pipe with its calls.

    It ends with 0, with 1 and a traceback where ``work`` raised, or by SIGKILL at call ``kill_at``.
    """
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads of pytest-xdist stay behind, which is fine
        pid = os.fork()
    if pid:
        os.close(writing)
        return pid, reading
    status = 1
    try:
        counter = _CallCounter(kill_at)
        if count or kill_at is not None:
            sys.setprofile(counter)
        work()
        sys.setprofile(None)
        os.write(writing, str(counter.calls).encode())
        status = 0
    except BaseException:
        sys.setprofile(None)
        traceback.print_exc()
    finally:
        os._exit(status)


def join(child: tuple[int, int]) -> tuple[int, int]:
    """Return how a child ended (0, 1 or minus the signal) and its number of calls (0 if it was killed)."""
    pid, reading = child
    _, status = os.waitpid(pid, 0)
    with os.fdopen(reading, "rb") as pipe:
        calls = int(pipe.read() or b"0")
    return os.waitstatus_to_exitcode(status), calls
