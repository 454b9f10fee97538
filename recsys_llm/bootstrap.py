"""How sure a difference between two models is: a paired bootstrap that resamples users, not events."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from recsys_llm.errors import ModelError

_CELLS = 2_000_000
"""Resampled counts held at once: 16 MB."""


@dataclass(frozen=True)
class Interval:
    """A mean difference and where it would lie in 95 of 100 repetitions with other users."""

    difference: float
    low: float
    high: float
    users: int

    @property
    def ci95(self) -> tuple[float, float]:
        """Both ends of the 95% interval."""
        return (self.low, self.high)


def paired_difference(
    baseline: npt.NDArray[np.floating],
    contender: npt.NDArray[np.floating],
    users: npt.NDArray[np.generic],
    *,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Return the mean of ``contender - baseline`` with its percentile bootstrap interval.

    Events of one user depend on each other, so whole users are drawn with replacement (a cluster bootstrap; Davison and
    Hinkley 1997, section 3.8), and each resample's mean is weighted by the events of the users in it.

    Parameters
    ----------
    baseline, contender : (n,)
        A metric of the same events.
    users : (n,)
        Who each event belongs to.
    resamples
        At least 100.

    Raises
    ------
    ModelError
        Lengths differ, there is no event, a value is not finite, or there are too few resamples.

    Examples
    --------
    >>> result = paired_difference(np.array([0.0, 0.0]), np.array([1.0, 1.0]), np.array(["a", "b"]))
    >>> result.difference, result.ci95
    (1.0, (1.0, 1.0))
    """
    if not len(baseline) == len(contender) == len(users) or not len(users) or resamples < 100:
        raise ModelError(
            "expected as many values of both rankers as users, at least one, and 100 resamples or more; found "
            f"{len(baseline)}, {len(contender)}, {len(users)} and {resamples}"
        )
    difference = np.asarray(contender, np.float64) - np.asarray(baseline, np.float64)
    if not np.isfinite(difference).all():
        raise ModelError(f"expected finite metrics, found {int((~np.isfinite(difference)).sum())} that are not")
    _, user = np.unique(users, return_inverse=True)
    events = np.bincount(user).astype(np.float64)
    sums = np.bincount(user, weights=difference)
    count = len(events)
    rng = np.random.default_rng(seed)
    means: list[npt.NDArray[np.float64]] = []
    step = max(1, _CELLS // count)
    for begin in range(0, resamples, step):
        drawn = rng.multinomial(count, np.full(count, 1 / count), size=min(step, resamples - begin))
        means.append((drawn @ sums) / (drawn @ events))
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return Interval(float(difference.mean()), float(low), float(high), count)
