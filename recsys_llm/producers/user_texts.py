"""What an encoder reads of a user as of a time: profile, items liked last, own words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from functools import lru_cache
from itertools import islice

import pyarrow as pa

from recsys_llm.config import Config, TextEncoderConfig
from recsys_llm.producers.timeline import Timeline
from recsys_llm.producers.user_rows import refuse_reserved
from recsys_llm.schema import EVENT_TIMESTAMP, HISTORY, ITEM_ID, PROFILE, USER_ID
from recsys_llm.sources import tables
from recsys_llm.text import TextEncoder, item_documents, one_line, user_document
from recsys_llm.text.documents import LONGEST_TOKEN, SEPARATOR
from recsys_llm.timestamps import TIMESTAMP

_KNOWN_COSTS = 100_000
_USERS_AT_ONCE = 10_000


class UserTexts:
    """Makes users' texts from what was known strictly before a time.

    Titles, profiles and words are held in memory, each cut to what its part of a text can hold.
    """

    def __init__(
        self,
        settings: TextEncoderConfig,
        cost: Callable[[str], int],
        *,
        titles: Timeline,
        words: Timeline,
        profiles: Timeline,
    ) -> None:
        self._profile_tokens, self._item_tokens, self._word_tokens = settings.user_tokens
        self._recent_words = settings.user.recent_words
        self._cost = cost
        self._titles, self._words, self._profiles = titles, words, profiles
        self._unseen = dict.fromkeys([*profiles.times(), *words.times()])
        refuse_reserved(self._unseen, "sources.users or sources.user_words")

    @classmethod
    def read(cls, config: Config, settings: TextEncoderConfig, encoder: TextEncoder, end: datetime) -> UserTexts:
        """Read all of items, users and user_words up to ``end``."""
        profile, items, words = settings.user_tokens
        return cls(
            settings,
            _entry_cost(encoder),
            titles=_item_titles(config, settings, end, items),
            words=Timeline.read(
                tables.user_words(config, end=end) if words and settings.user.recent_words else (),
                USER_ID,
                lambda batch: _heads(batch.column(tables.TEXT).to_pylist(), words),
            ),
            profiles=_profiles(config, settings, end, profile),
        )

    def changes(self, users: pa.Array) -> pa.RecordBatch:
        """Return the times of these users' profiles and words: ``user_id``, ``event_timestamp``.

        Raises
        ------
        RowError
            A user has a reserved id.
        """
        names = users.unique().to_pylist()
        refuse_reserved(names, "sources.interactions")
        for name in names:
            self._unseen.pop(name, None)
        return self._changes(names)

    def changes_of_others(self) -> Iterator[pa.RecordBatch]:
        """Yield, as :meth:`changes` does, those of all users that it was never asked about."""
        unseen = iter(sorted(self._unseen))
        while names := list(islice(unseen, _USERS_AT_ONCE)):
            yield self._changes(names)

    def of_user(self, user: str, liked: Iterable[str], stamp: int) -> tuple[str, str]:
        """Return a user's text as of just before ``stamp`` (microseconds), and its provenance.

        Parameters
        ----------
        liked
            Items that the user liked last, newest first.
        """
        profile = self._profiles.before(user, stamp) or ""
        words = self._words.newest_before(user, stamp, self._recent_words)
        history = [(self._titles_of(liked, stamp), self._item_tokens), (words, self._word_tokens)]
        text = user_document([([profile], self._profile_tokens), *history], self._cost)
        has_history = any(entry and tokens for entries, tokens in history for entry in entries)
        return text, HISTORY if has_history else PROFILE

    def of_items(self, items: Iterable[str], stamp: int) -> str:
        """Return the text of items alone, most important first."""
        return user_document([(self._titles_of(items, stamp), self._item_tokens)], self._cost)

    def _titles_of(self, items: Iterable[str], stamp: int) -> list[str]:
        return [title for item in items if (title := self._titles.before(item, stamp))]

    def _changes(self, names: Sequence[str]) -> pa.RecordBatch:
        found = [timeline.changes(names) for timeline in (self._profiles, self._words)]
        users = [user for some, _ in found for user in some]
        times = [time for _, some in found for time in some]
        columns = [pa.array(users, pa.string()), pa.array(times, pa.int64()).cast(TIMESTAMP)]
        return pa.RecordBatch.from_arrays(columns, names=[USER_ID, EVENT_TIMESTAMP])


def _item_titles(config: Config, settings: TextEncoderConfig, end: datetime, tokens: int) -> Timeline:
    template, source = settings.user.template, config.sources.items.origin
    return Timeline.read(
        tables.items(config, end=end),
        ITEM_ID,
        lambda batch: _heads(item_documents(batch, template, source=source), tokens),
    )


def _profiles(config: Config, settings: TextEncoderConfig, end: datetime, tokens: int) -> Timeline:
    template, table = settings.user.profile_template, config.sources.users
    if template is None or table is None or not tokens:
        return Timeline()
    return Timeline.read(
        tables.users(config, end=end),
        USER_ID,
        lambda batch: _heads(item_documents(batch, template, source=table.origin), tokens),
    )


def _heads(texts: Iterable[str], tokens: int) -> list[str]:
    return [one_line(text)[: LONGEST_TOKEN * tokens] for text in texts]


def _entry_cost(encoder: TextEncoder) -> Callable[[str], int]:
    """Return the tokens of an entry with the separator before it; titles come again and again."""
    special = encoder.count_tokens([""])

    @lru_cache(maxsize=_KNOWN_COSTS)
    def cost(entry: str) -> int:
        return encoder.count_tokens([SEPARATOR + entry]) - special

    return cost
