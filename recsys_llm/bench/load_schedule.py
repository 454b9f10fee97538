"""Requests at a fixed rate by one thread, with latencies that count the waiting for those before them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

HELD = 0.99
"""Share of the offered rate that has to be answered for it to be held."""

GOOD = ""
"""What a request returns that was answered in full."""


@dataclass
class Trace:
    """What became of the requests of one schedule."""

    rate: float
    """Offered, in requests per second."""
    intended: list[float] = field(default_factory=list)
    """When each was due, in seconds since the beginning."""
    sent: list[float] = field(default_factory=list)
    done: list[float] = field(default_factory=list)
    outcomes: list[str] = field(default_factory=list)
    """:data:`GOOD`, or what failed."""

    def latencies_ms(self) -> npt.NDArray[np.float64]:
        """Return the time from when each was due until it was answered: who waits behind a slow one waits too."""
        return np.multiply(1000.0, np.subtract(self.done, self.intended))

    def service_ms(self) -> npt.NDArray[np.float64]:
        """Return the time from when each was sent until it was answered."""
        return np.multiply(1000.0, np.subtract(self.done, self.sent))

    @property
    def answered_per_s(self) -> float:
        """Requests over the time until the last answer."""
        return len(self.done) / max(self.done[-1], len(self.done) / self.rate)

    def errors(self) -> dict[str, int]:
        """Return how often each failure came."""
        return dict(Counter(outcome for outcome in self.outcomes if outcome != GOOD))

    def held(self, limit_ms: float) -> bool:
        """Whether nearly the offered rate was answered, with a p99 within a limit."""
        p99 = float(np.percentile(self.latencies_ms(), 99))
        return self.answered_per_s >= HELD * self.rate and p99 <= limit_ms and not self.errors()


def closed_loop(request: Callable[[], str], seconds: float, clock: Callable[[], float] = time.perf_counter) -> float:
    """Return requests per second, each sent when the one before it is answered."""
    started, count = clock(), 0
    while clock() - started < seconds or not count:
        request()
        count += 1
    return count / (clock() - started)


def open_loop(
    request: Callable[[], str],
    rate: float,
    seconds: float,
    *,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> Trace:
    """Send ``rate * seconds`` requests when each is due, or as soon as the one before it is answered if that is later.

    A server that stands still delays all requests that are due in the meantime, as it would delay users who don't wait
    for each other; a loop that only sends after an answer would leave them out (coordinated omission).

    Parameters
    ----------
    request
        Returns :data:`GOOD` or what failed.

    Examples
    --------
    One request of two seconds, ten due per second: those that were due while it ran waited for it.

    >>> now = [0.0]
    >>> def request():
    ...     now[0] += 2.0 if now[0] < 0.1 else 0.0
    ...     return ""
    >>> trace = open_loop(request, 10, 1, clock=lambda: now[0], sleep=lambda s: now.__setitem__(0, now[0] + s))
    >>> [round(latency) for latency in trace.latencies_ms()]
    [2000, 1900, 1800, 1700, 1600, 1500, 1400, 1300, 1200, 1100]
    """
    trace, started = Trace(rate), clock()
    for number in range(max(1, round(rate * seconds))):
        due = number / rate
        early = due - (clock() - started)
        if early > 0:
            sleep(early)
        sent = clock() - started
        outcome = request()
        trace.intended.append(due)
        trace.sent.append(sent)
        trace.done.append(clock() - started)
        trace.outcomes.append(outcome)
    return trace


def highest_rate(try_rate: Callable[[float], bool], most: float, *, steps: int = 5) -> float:
    """Return the highest rate that is held, by bisection below ``most``.

    Examples
    --------
    >>> highest_rate(lambda rate: rate <= 70, 100, steps=6)
    68.75
    """
    low, high = 0.0, most
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (middle, high) if try_rate(middle) else (low, middle)
    # Where nothing was held, the lowest that was tried.
    return low if low > 0 else high
