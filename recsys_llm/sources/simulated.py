"""A made-up catalogue and its users, for trying things out where there is no data.

Items have latent attributes (category, theme, tone) from which their texts are templated, so that texts tell something
about taste. A theme has one usual successor (a Markov chain over themes), so that sequences can be learned. Users have
tastes that drift from one mix of themes to another. It has the hazards of real data too: items that come out during the
period, baskets of several items at one time, users with a single event, ratings that are missing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from recsys_llm.files import replaced_file
from recsys_llm.timestamps import TIMESTAMP, to_micros

START = datetime(2023, 1, 1, tzinfo=UTC)
"""First day of the simulated period."""

FOLLOW = 0.55
"""Share of steps that go from a theme to its usual successor."""
STAY = 0.2
"""Share of steps that stay in the theme; the rest is drawn from the user's taste."""
BASKET = 0.3
"""Share of steps that happen at the very time of the step before."""
ONE_EVENT = 30
"""Every so many users, one has a single event."""
MEDIAN_EVENTS = 40

THEMES: dict[str, tuple[str, ...]] = {
    "Adventure": ("polar expeditions", "lost cities", "mountain rescues", "desert caravans", "river voyages"),
    "Comedy": ("clumsy neighbours", "office rivalries", "wedding disasters", "talking pets", "small town elections"),
    "Crime": ("art thefts", "cold cases", "forged letters", "harbour smugglers", "courtroom secrets"),
    "History": ("medieval builders", "steam railways", "silk merchants", "forgotten queens", "wartime codebreakers"),
    "Music": ("jazz clubs", "touring orchestras", "folk festivals", "pop rivalries", "street drummers"),
    "Nature": ("deep sea life", "migrating birds", "old forests", "desert insects", "wolves in winter"),
    "Romance": ("letters across oceans", "summer islands", "second chances", "rival bakers", "train encounters"),
    "Science Fiction": ("generation ships", "dreaming machines", "time loops", "silent planets", "cloned detectives"),
}
TONES = ("warm", "dark", "playful", "quiet", "bold")
_NOUNS = ("Lantern", "Harbour", "Compass", "Orchard", "Mirror", "Signal", "Bridge", "Winter", "Garden", "Thread")
_MAKERS = ("Ada Moreno", "Ben Okafor", "Chen Liu", "Dora Novak", "Emil Hansen", "Farah Aziz", "Goran Ilic", "Hana Sato")
_CATEGORY_OF = [category for category, themes in THEMES.items() for _ in themes]
_THEME_NAMES = [theme for themes in THEMES.values() for theme in themes]
_DAY = 86_400_000_000


@dataclass(frozen=True)
class Catalogue:
    """The latent attributes of ``n`` items."""

    theme: npt.NDArray[np.int64]
    """(n,) index into all themes."""
    tone: npt.NDArray[np.int64]
    """(n,) index into :data:`TONES`."""
    popularity: npt.NDArray[np.float64]
    """(n,) positive weights with a long tail."""
    released: npt.NDArray[np.int64]
    """(n,) microseconds since the epoch."""
    price: npt.NDArray[np.float64]
    """(n,)"""


def write_simulated(directory: Path, *, users: int = 400, items: int = 800, days: int = 365, seed: int = 0) -> Path:
    """Write ``items.parquet`` and ``interactions.parquet`` of the simulated catalogue.

    Parameters
    ----------
    directory
        Made if it doesn't exist; files in it are replaced.
    users, items
        How many; at least 1 and at least 80.
    days
        Length of the period from :data:`START`, at least 2.
    seed
        The same numbers give the same rows.

    Returns
    -------
    Path
        ``directory``.

    Raises
    ------
    ValueError
        A number is too small.
    """
    for name, value, least in (("users", users, 1), ("items", items, 2 * len(_THEME_NAMES)), ("days", days, 2)):
        if value < least:
            raise ValueError(f"{name}: expected at least {least}, found {value}")
    rng = np.random.default_rng(seed)
    catalogue = _catalogue(rng, items, days)
    tables = {
        "items.parquet": _items_table(rng, catalogue),
        "interactions.parquet": _interactions_table(rng, catalogue, users, days),
    }
    directory.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        with replaced_file(directory / name) as file:
            pq.write_table(table, file)
    return directory


def _catalogue(rng: np.random.Generator, items: int, days: int) -> Catalogue:
    first = to_micros(START)
    before = first - rng.integers(1, 1000, items) * _DAY
    during = first + rng.integers(0, max(days * 3 // 4, 1), items) * _DAY
    theme = np.arange(items) % len(_THEME_NAMES)  # every theme has items
    return Catalogue(
        theme=rng.permutation(theme),
        tone=rng.integers(0, len(TONES), items),
        popularity=1 / (1 + rng.permutation(items)) ** 0.6,
        released=np.where(rng.random(items) < 0.7, before, during),
        price=np.round(np.exp(rng.normal(2.3, 0.5, items)), 2).astype(np.float64),
    )


def _items_table(rng: np.random.Generator, catalogue: Catalogue) -> Any:
    titles, texts = [], []
    makers = rng.integers(0, len(_MAKERS), len(catalogue.theme))
    nouns = rng.integers(0, len(_NOUNS), (len(catalogue.theme), 2))
    for index, (theme, tone) in enumerate(zip(catalogue.theme, catalogue.tone, strict=True)):
        titles.append(f"The {_NOUNS[nouns[index, 0]]} and the {_NOUNS[nouns[index, 1]]} {index + 1}")
        texts.append(
            f"A {TONES[tone]} {_CATEGORY_OF[theme].lower()} story about {_THEME_NAMES[theme]}, "
            f"told by {_MAKERS[makers[index]]}."
        )
    return pa.table(
        {
            "item_id": pa.array(_item_ids(np.arange(len(titles))), pa.string()),
            "title": pa.array(titles, pa.string()),
            "text": pa.array(texts, pa.string()),
            "category": pa.array([_CATEGORY_OF[theme] for theme in catalogue.theme], pa.string()),
            "event_timestamp": pa.array(catalogue.released, pa.int64()).cast(TIMESTAMP),
            "price": pa.array(catalogue.price, pa.float64()),
        }
    )


def _interactions_table(rng: np.random.Generator, catalogue: Catalogue, users: int, days: int) -> Any:
    successor = _successors(rng)
    members = [np.flatnonzero(catalogue.theme == theme) for theme in range(len(_THEME_NAMES))]
    rows = [
        (f"u{user + 1:05d}", item, time, rating)
        for user in range(users)
        for item, time, rating in _history(rng, catalogue, successor, members, days, one_event=user % ONE_EVENT == 0)
    ]
    rows.sort(key=lambda row: (row[2], row[0], row[1]))
    user_ids, items, times, ratings = (list(column) for column in zip(*rows, strict=True))
    return pa.table(
        {
            "user_id": pa.array(user_ids, pa.string()),
            "item_id": pa.array(_item_ids(np.array(items)), pa.string()),
            "rating": pa.array(ratings, pa.float32()),
            "event": pa.array(["view" if rating is None else "rate" for rating in ratings], pa.string()),
            "price": pa.array(catalogue.price[np.array(items)], pa.float32()),
            "event_timestamp": pa.array(times, TIMESTAMP),
        }
    )


def _successors(rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Return the usual next theme of each theme: one cycle through all, so that none leads to itself."""
    cycle = rng.permutation(len(_THEME_NAMES))
    successor = np.empty_like(cycle)
    successor[cycle] = np.roll(cycle, -1)
    return successor


def _history(
    rng: np.random.Generator,
    catalogue: Catalogue,
    successor: npt.NDArray[np.int64],
    members: list[npt.NDArray[np.int64]],
    days: int,
    *,
    one_event: bool,
) -> Iterator[tuple[int, int, float | None]]:
    """Yield (item, time in microseconds, rating) of one user, in time order."""
    early, late = rng.dirichlet(np.full(len(members), 0.1), 2)
    liked_tone = rng.integers(0, len(TONES))
    count = 1 if one_event else int(np.clip(rng.lognormal(np.log(MEDIAN_EVENTS), 0.7), 2, 400))
    times = _times(rng, count, days)
    seen: set[int] = set()
    theme: int | None = None
    for time in times:
        late_share = (time - to_micros(START)) / (days * _DAY)
        chance = rng.random()
        if theme is None or chance >= FOLLOW + STAY:
            theme = int(rng.choice(len(members), p=(1 - late_share) * early + late_share * late))
        elif chance < FOLLOW:
            theme = int(successor[theme])
        choice = [item for item in members[theme] if catalogue.released[item] <= time and item not in seen]
        if not choice:
            continue
        weights = catalogue.popularity[choice] * np.where(catalogue.tone[choice] == liked_tone, 4.0, 1.0)
        item = int(rng.choice(choice, p=weights / weights.sum()))
        seen.add(item)
        match = float(catalogue.tone[item] == liked_tone)
        rating = round(2 * float(np.clip(rng.normal(3.3 + match, 0.7), 0.5, 5.0))) / 2
        yield item, int(time), None if rng.random() < 0.1 else rating


def _times(rng: np.random.Generator, count: int, days: int) -> list[int]:
    """Return ``count`` times in order, whole seconds, some of them equal."""
    seconds = np.sort(rng.integers(0, days * 86_400, count))
    together = rng.random(count) < BASKET
    for index in range(1, count):
        if together[index]:
            seconds[index] = seconds[index - 1]
    return [to_micros(START + timedelta(seconds=int(second))) for second in seconds]


def _item_ids(indexes: npt.NDArray[np.int64]) -> list[str]:
    return [f"i{index + 1:05d}" for index in indexes.tolist()]
