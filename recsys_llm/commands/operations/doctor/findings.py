"""What a check finds, and from where on it is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from recsys_llm.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class Limits:
    """From where on a figure is a problem."""

    max_lag_hours: float = 36.0
    """Since the end of a view's last materialisation."""
    min_coverage: float = 0.95
    """Share of the source's keys that have a row."""
    max_null_rate: float = 0.99
    """Of a feature, among the newest rows."""
    max_norm_shift: float = 0.05
    """Of the mean length of vectors between old and new, relative to the larger one."""
    min_centroid_cosine: float = 0.8
    """Of the means of new and older vectors."""
    max_psi: float = 0.5
    """Population stability index of new vectors' projections on the older centroid."""
    min_neighbour_overlap: float = 0.5
    """Of the ten nearest neighbours of keys that have a new and an older vector."""
    sample: int = 500
    """Keys of each view that are compared with the online store."""
    seed: int = 0
    """Other keys for each."""

    def changed(self, texts: Sequence[str]) -> Limits:
        """Return these limits with some ``name=value`` put in place.

        Raises
        ------
        ConfigError
            There is no such limit, or the value is no number.

        Examples
        --------
        >>> Limits().changed(["max_psi=0.3", "seed=7"]).max_psi
        0.3
        """
        known = {field.name: float if isinstance(field.default, float) else int for field in fields(self)}
        values: dict[str, Any] = {}
        for text in texts:
            name, _, value = text.partition("=")
            if name not in known:
                raise ConfigError(f"--limit {text}: unknown limit {name!r}; {did_you_mean(name, known)}")
            try:
                values[name] = known[name](value)
            except ValueError:
                raise ConfigError(f"--limit {text}: expected a number such as {name}={getattr(self, name)}") from None
        return replace(self, **values)


@dataclass(frozen=True)
class Finding:
    """The outcome of one check."""

    check: str
    subject: str
    """View, feature, service or store."""
    ok: bool
    detail: str
    value: float | None = None
    limit: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        found = {"check": self.check, "subject": self.subject, "ok": self.ok, "detail": self.detail}
        return found | {
            key: value for key, value in (("value", self.value), ("limit", self.limit)) if value is not None
        }

    def __str__(self) -> str:
        return f"{'ok  ' if self.ok else 'FAIL'}  {self.check:<12} {self.subject:<40} {self.detail}"


def at_most(check: str, subject: str, value: float, limit: float, detail: str) -> Finding:
    """Return a finding that is fine up to a limit."""
    return Finding(check, subject, value <= limit, detail, value, limit)


def at_least(check: str, subject: str, value: float, limit: float, detail: str) -> Finding:
    """Return a finding that is fine from a limit on."""
    return Finding(check, subject, value >= limit, detail, value, limit)
