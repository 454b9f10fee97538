"""A small world of users, drawn at random, and what its users' texts must be, by brute force."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

from recsys_llm.config import (
    Config,
    InteractionsConfig,
    ItemsConfig,
    SourcesConfig,
    TextEncoderConfig,
    UserDocumentConfig,
    UsersConfig,
    UserWordsConfig,
)
from recsys_llm.timestamps import from_micros, to_micros
from tests.builders import STAMP, hours

DAY = 86_400_000_000
PERIODS = {"event": 0, "12h": DAY // 2, "1d": DAY}
RECENT_ITEMS, RECENT_WORDS = 3, 2
USERS, ITEMS, SEGMENTS = ["u1", "u2", "u3"], ["i1", "i2", "i3", "i4"], ["DE", "FR", None]

ticks = st.integers(0, 20).map(lambda tick: hours(6 * tick))


class WordCounter:
    """Stands in for an encoder: a token is a word."""

    fingerprint = "words"
    dim = 2
    transform = None

    def __init__(self, trained_until: datetime | None = None):
        self.trained_until = trained_until

    def encode(self, texts):
        return np.array([[len(text), text.count(" ")] for text in texts], np.float32).reshape(len(texts), 2)

    def count_tokens(self, texts):
        return sum(len(text.split()) for text in texts)


@dataclass(frozen=True)
class World:
    items: list = field(default_factory=list)  # (item, time, title)
    events: list = field(default_factory=list)  # (user, item, time, liked, segment)
    words: list = field(default_factory=list)  # (user, time, text)
    profiles: list = field(default_factory=list)  # (user, time, segment, bio)
    granularity: str = "1d"
    segment_in: str = "interactions"
    days: int = 2
    least_users: int = 1

    def tables(self) -> dict[str, pa.Table]:
        """Return the tables by their paths in :meth:`config`."""
        user, time, text = {"user_id": pa.string()}, {"event_timestamp": STAMP}, {"text": pa.string()}
        likes = {"rating": pa.float32(), "country": pa.string()}
        return {
            "items.parquet": _table(self.items, item_id=pa.string(), **time, title=pa.string()),
            "interactions.parquet": _table(self.events, **user, item_id=pa.string(), **time, **likes),
            "tags.parquet": _table(self.words[::2], **user, **time, **text),
            "queries.parquet": _table(self.words[1::2], **user, **time, **text),
            "users.parquet": _table(self.profiles, **user, **time, country=pa.string(), bio=pa.string()),
        }

    def config(self) -> Config:
        segment = {"segment": "country"}
        return Config(
            sources=SourcesConfig(
                items=ItemsConfig(parquet="items.parquet", category=None),
                interactions=InteractionsConfig(
                    parquet="interactions.parquet",
                    rating="rating",
                    liked_from=0.5,
                    **(segment if self.segment_in == "interactions" else {}),
                ),
                users=UsersConfig(parquet="users.parquet", **(segment if self.segment_in == "users" else {})),
                user_words=(UserWordsConfig(parquet="tags.parquet"), UserWordsConfig(parquet="queries.parquet")),
            ),
            text_encoders={
                "m": TextEncoderConfig(
                    model="m",
                    max_tokens=100,
                    template="{title}",
                    user=UserDocumentConfig(
                        granularity=self.granularity,
                        recent_items=RECENT_ITEMS,
                        recent_words=RECENT_WORDS,
                        profile_template="{bio}",
                        cold_start_days=self.days,
                        cold_start_users=self.least_users,
                    ),
                )
            },
        )

    def user_rows(self, start: datetime, end: datetime, cutoff: datetime | None) -> set[tuple[str, datetime, str, str]]:
        """Return (user, stamp, text, provenance) of all rows of real users."""
        found = set()
        period = PERIODS[self.granularity]
        changes = [(user, time) for user, _, time, _, _ in self.events] + [(user, time) for user, time, _ in self.words]
        changes += [(user, time) for user, time, _, _ in self.profiles]
        for user, time in changes:
            micros = to_micros(time)
            stamp = from_micros(micros + 1 if not period else (micros // period + 1) * period)
            stamp = stamp if cutoff is None else max(stamp, cutoff)
            text, provenance = self.text(user, stamp)
            if start < stamp <= end and text:
                found.add((user, stamp, text, provenance))
        return found

    def text(self, user: str, stamp: datetime) -> tuple[str, str]:
        """Return a user's text from data strictly before ``stamp`` alone, and where it came from."""
        liked = sorted((time, item) for who, item, time, liked, _ in self.events if who == user and liked)
        recent = [item for time, item in liked if time < stamp][-RECENT_ITEMS:][::-1]
        titles = [title for item in recent if (title := self.title(item, stamp))]
        said = sorted((time, text) for who, time, text in self.words if who == user and time < stamp)
        words = [text for _, text in said[-RECENT_WORDS:][::-1]]
        bios = sorted((time, bio or "") for who, time, _, bio in self.profiles if who == user and time < stamp)
        profile = bios[-1][1] if bios else ""
        entries = dict.fromkeys(entry for entry in (profile, *titles, *words) if entry)
        return ". ".join(entries), "history" if titles or any(words) else "profile"

    def title(self, item: str, stamp: datetime) -> str:
        known = sorted((time, title) for name, time, title in self.items if name == item and time < stamp)
        return known[-1][1] if known else ""

    def cold_rows(self, start: datetime, end: datetime, cutoff: datetime | None) -> set[tuple[str, datetime, str, str]]:
        """Return (reserved id, stamp, text, provenance) of all rows of segments and of everyone."""
        likes = [("global", item, time, user) for user, item, time, liked, _ in self.events if liked]
        likes += [
            (f"segment:{segment}", item, time, user)
            for user, item, time, liked, own in self.events
            if liked and (segment := self.segment(user, own, time))
        ]
        stamps = {(key, from_micros((to_micros(time) // DAY + 1) * DAY)) for key, _, time, _ in likes}
        if cutoff is not None:
            stamps = {(key, stamp) for key, stamp in stamps if stamp > cutoff} | {(key, cutoff) for key, *_ in likes}
        found = set()
        for key, stamp in stamps:
            first = stamp - timedelta(days=self.days)
            counted = [(item, user) for name, item, time, user in likes if name == key and first <= time < stamp]
            if key != "global" and len({user for _, user in counted}) < self.least_users:
                continue
            counts = Counter(item for item, _ in counted)
            top = sorted(counts, key=lambda item: (-counts[item], item))[:RECENT_ITEMS]
            text = ". ".join(dict.fromkeys(title for item in top if (title := self.title(item, stamp))))
            if text and start < stamp <= end:
                found.add((key, stamp, text, "global" if key == "global" else "segment"))
        return found

    def segment(self, user: str, own: str | None, time: datetime) -> str | None:
        if self.segment_in != "users":
            return own if self.segment_in == "interactions" else None
        known = sorted(
            (since, segment or "") for who, since, segment, _ in self.profiles if who == user and since <= time
        )
        return known[-1][1] if known else None


def _table(rows: list, **types: pa.DataType) -> pa.Table:
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(types)
    return pa.table({name: pa.array(column, kind) for (name, kind), column in zip(types.items(), columns, strict=True)})


def _distinct(rows, key):
    return st.lists(rows, max_size=14, unique_by=key)


worlds = st.builds(
    World,
    items=st.lists(
        st.tuples(st.sampled_from(ITEMS), ticks, st.sampled_from(["One", "Two", "Three", ""])),
        max_size=8,
        unique_by=lambda row: row[:2],
    ),
    events=st.lists(
        st.tuples(st.sampled_from(USERS), st.sampled_from(ITEMS), ticks, st.booleans(), st.sampled_from(SEGMENTS)),
        max_size=20,
        unique_by=lambda row: row[:3],
    ),
    words=_distinct(st.tuples(st.sampled_from(USERS), ticks, st.sampled_from(["dry", "slow", "One"])), lambda row: row),
    profiles=_distinct(
        st.tuples(st.sampled_from([*USERS, "u4"]), ticks, st.sampled_from(SEGMENTS), st.sampled_from(["Ann", None])),
        lambda row: row[:2],
    ),
    granularity=st.sampled_from(list(PERIODS)),
    segment_in=st.sampled_from(["interactions", "users", "nowhere"]),
    days=st.integers(1, 3),
    least_users=st.integers(1, 3),
)
