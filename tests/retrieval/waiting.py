"""Waiting for what another thread or process does."""

from __future__ import annotations

import time

DEADLINE = 20.0


def wait_for(condition):
    """Wait until something holds; the assertion that follows says what."""
    deadline = time.monotonic() + DEADLINE
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.001)
    return condition()
