"""Times of several sides that meet the same machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any


def interleaved(
    sides: Mapping[str, Callable[[], Any]], runs: int, *, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Return the seconds of each side, run in turns.

    Parameters
    ----------
    clock
        ``time.process_time`` counts CPU seconds of all threads, which other programs on the machine change little.
    """
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(runs):
        for name, side in sides.items():
            started = clock()
            side()
            times[name].append(clock() - started)
    return times
