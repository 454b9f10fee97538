"""Peak memory of a piece of work, in a process of its own."""

from __future__ import annotations

import multiprocessing
import resource
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any


def in_own_process(work: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """Return what ``work`` returns in a new process, and the peak memory of that process in MiB, imports included.

    Parameters
    ----------
    work
        A function of a module's top level.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        found: tuple[Any, float] = pool.submit(_with_peak, work, *arguments).result()
    return found


def peak_mib() -> float:
    """Return the most memory that this process has had, in MiB."""
    # After a fork and exec, getrusage still counts the parent's pages; Linux's high-water mark starts anew.
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _with_peak(work: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    result = work(*arguments)
    return result, peak_mib()
