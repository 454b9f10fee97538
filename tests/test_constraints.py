"""Every package that an installation brings along is pinned: what was tested and audited is what is installed."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"
UNPINNED = {"recsys-llm", "pip", "setuptools"}
"""Of the last two a virtual environment brings its own."""


def installed(name: str, extras: frozenset[str], seen: set[tuple[str, frozenset[str]]]) -> Iterator[str]:
    """Yield what a package needs here, and what those need."""
    if (canonicalize_name(name), extras) in seen:
        return
    seen.add((canonicalize_name(name), extras))
    yield canonicalize_name(name)
    for requirement in map(Requirement, metadata.distribution(name).requires or []):
        applies = requirement.marker is None or any(
            requirement.marker.evaluate({"extra": extra}) for extra in {*extras, ""}
        )
        if applies:
            yield from installed(requirement.name, frozenset(requirement.extras), seen)


def test_all_are_pinned():
    lines = [line for line in CONSTRAINTS.read_text().splitlines() if line and not line.startswith("#")]
    pinned = {canonicalize_name(line.partition("==")[0]) for line in lines}
    assert all(line.count("==") == 1 for line in lines)
    assert len(pinned) == len(lines)
    needed = set(installed("recsys-llm", frozenset({"test"}), set()))
    assert len(needed) > 100
    assert needed - pinned - UNPINNED == set()
