"""What an encoder is fine-tuned on: item texts as known at a time, and which item followed what."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import pyarrow as pa

from recsys_llm.config import TextEncoderConfig
from recsys_llm.errors import TrainingError
from recsys_llm.schema import CATEGORY, EVENT_TIMESTAMP, ITEM_ID
from recsys_llm.text.contrastive import pair_keys
from recsys_llm.text.documents import item_documents, user_document
from recsys_llm.text.evaluation import NextItemPairs, pair_events
from recsys_llm.text.events import Events, Ints, read_events
from recsys_llm.timestamps import from_micros, to_micros

LEAST_PAIRS = 20
"""To train on, and to validate on: fewer would be noise."""
_PER_USER = 200
"""Pairs of one user at most, so that nobody's taste is everybody's."""


@dataclass(frozen=True, eq=False)
class ItemTexts:
    """The newest text of each item from before a time; made by :func:`item_texts`."""

    ids: list[str]
    """Ascending."""
    texts: list[str]
    """By the encoder's template."""
    titles: list[str]
    """By the template of user texts."""
    categories: list[str]
    """Comma-separated; empty where there is none."""
    times: Ints
    """Since when the text holds, microseconds since the epoch."""

    def __len__(self) -> int:
        return len(self.ids)


def item_texts(
    batches: Iterable[pa.RecordBatch], encoder: TextEncoderConfig, *, until: datetime, source: str
) -> ItemTexts:
    """Return each item's newest text from strictly before ``until``; items without one are left out.

    Parameters
    ----------
    batches
        Canonical items, ordered by id and time.
    source
        Where the rows come from; only for messages.
    """
    rows: dict[str, tuple[str, str, str, int]] = {}
    for batch in batches:
        times = batch.column(EVENT_TIMESTAMP).cast(pa.int64()).to_pylist()
        texts = item_documents(batch, encoder.template, source=source)
        titles = item_documents(batch, encoder.user.template, source=source)
        categories = [value or "" for value in batch.column(CATEGORY).to_pylist()]
        for item, row in zip(
            batch.column(ITEM_ID).to_pylist(), zip(texts, titles, categories, times, strict=True), strict=True
        ):
            if row[3] < to_micros(until) and (item not in rows or rows[item][3] <= row[3]):
                rows[item] = row
    ids = sorted(rows)
    columns = [list(column) for column in zip(*(rows[item] for item in ids), strict=True)] if ids else [[]] * 4
    return ItemTexts(ids, columns[0], columns[1], columns[2], np.array(columns[3], np.int64))


@dataclass(frozen=True, eq=False)
class TextPairs:
    """Pairs of a query's text and an item that came next; made by :func:`text_pairs`."""

    texts: list[str]
    """Distinct."""
    item_text: Ints
    """(items,) place of each item's text."""
    query_text: Ints
    """(n,) place of each query's text."""
    query_item: Ints
    """(n,) the query's item; -1 where the query is a user's text."""
    target: Ints
    """(n,) the item that came next."""
    user: Ints
    """(n,)"""
    seen: Ints
    """Sorted keys of (user, item) with an event, from :func:`~recsys_llm.text.contrastive.pair_keys`."""
    positives: Ints
    """Sorted keys of (query's item, target)."""
    validation: NextItemPairs
    """The last in time."""
    validation_from: datetime
    """Training pairs are from before, validation pairs from then on."""

    def __len__(self) -> int:
        return len(self.target)


def text_pairs(
    interactions: pa.Table | Iterable[pa.RecordBatch],
    items: ItemTexts,
    *,
    until: datetime,
    item_pairs: int = 20_000,
    user_pairs: int = 10_000,
    recent_items: int = 8,
    validation_share: float = 0.1,
    validation_pairs: int = 20_000,
    seed: int = 0,
) -> TextPairs:
    """Return what to train and to validate on, all of it from before ``until``.

    An item pair has the text of an item that the user liked just before; see
    :func:`~recsys_llm.text.evaluation.next_item_pairs`. A user pair has the titles of all that they liked last before
    the target's time, newest first, as :func:`~recsys_llm.text.documents.user_document` joins them.

    Parameters
    ----------
    interactions
        Canonical, with ``liked``. Events at or after ``until`` are not looked at.
    item_pairs, user_pairs, validation_pairs
        At most; more are sampled.
    recent_items
        Titles in a user's text.
    validation_share
        Share of the pairs, the last in time, that is held back for validation.

    Raises
    ------
    TrainingError
        There are fewer than :data:`LEAST_PAIRS` pairs on either side.
    """
    events = read_events(interactions, items.ids)
    events = events.where(events.time < to_micros(until))
    readable = np.array([bool(text) for text in items.texts], np.bool_)
    pairs = pair_events(events, len(items), until=until, per_user=_PER_USER, seed=seed)
    pairs = pairs.take(readable[pairs.query] & readable[pairs.target])
    split = _split_time(pairs.time, validation_share)
    train = pairs.take(pairs.time < split)
    validation = pair_events(
        events, len(items), start=from_micros(split), until=from_micros(split), per_user=_PER_USER, seed=seed
    )
    validation = validation.take(readable[validation.query] & readable[validation.target])
    _check_enough(len(train), len(validation), until)
    rng = np.random.default_rng(seed)
    by_item = train.take(_sample(len(train), item_pairs, rng))
    by_user = train.take(_sample(len(train), user_pairs, rng))
    known = events.where(events.time < split)
    users_read = _user_texts(by_user, known, items.titles, recent_items)
    texts, places = distinct_texts([*items.texts, *users_read])
    item_text, user_text = places[: len(items)], places[len(items) :]
    return TextPairs(
        texts=texts,
        item_text=item_text,
        query_text=np.concatenate([item_text[by_item.query], user_text]),
        query_item=np.concatenate([by_item.query, np.full(len(by_user), -1)]),
        target=np.concatenate([by_item.target, by_user.target]),
        user=np.concatenate([by_item.user, by_user.user]),
        seen=pair_keys(known.user, known.item, len(items)),
        positives=pair_keys(train.query, train.target, len(items)),
        validation=validation.take(_sample(len(validation), validation_pairs, rng)),
        validation_from=from_micros(split),
    )


def distinct_texts(texts: Iterable[str]) -> tuple[list[str], Ints]:
    """Return the distinct texts in order of first use, and the place of each text among them.

    Examples
    --------
    >>> distinct, places = distinct_texts(["b", "a", "b"])
    >>> distinct, places.tolist()
    (['b', 'a'], [0, 1, 0])
    """
    places: dict[str, int] = {}
    found = np.array([places.setdefault(text, len(places)) for text in texts], np.int64)
    return list(places), found


def _split_time(times: Ints, share: float) -> int:
    """Return the time from which on pairs are for validation: about the last ``share`` of them."""
    return int(np.sort(times)[int(len(times) * (1 - share))]) if len(times) else 0


def _check_enough(train: int, validation: int, until: datetime) -> None:
    if min(train, validation) < LEAST_PAIRS:
        raise TrainingError(
            f"expected at least {LEAST_PAIRS} pairs of an item and the next one of the same user to train on, and "
            f"{LEAST_PAIRS} later ones to validate on, before {until}; found {train} and {validation}; use a later "
            "time or more interactions"
        )


def _sample(count: int, most: int, rng: np.random.Generator) -> Ints:
    """Return the sorted positions of at most ``most`` of ``count`` rows."""
    return np.arange(count) if count <= most else np.sort(rng.choice(count, most, replace=False))


def _user_texts(pairs: NextItemPairs, events: Events, titles: Sequence[str], recent: int) -> list[str]:
    """Return for each pair what its user had liked before the target's time."""
    user, time, item, _ = events.where(events.liked)
    begins = np.searchsorted(user, np.arange(pairs.user.max(initial=-1) + 2))
    texts: dict[tuple[int, int], str] = {}
    found = []
    for key in zip(pairs.user.tolist(), pairs.time.tolist(), strict=True):
        if key not in texts:
            begin, end = begins[key[0]], begins[key[0] + 1]
            stop = begin + int(np.searchsorted(time[begin:end], key[1]))
            newest = item[max(begin, stop - recent) : stop][::-1]
            shown = [titles[place] for place in newest.tolist()]
            texts[key] = user_document([(shown, recent)], lambda title: 1)  # whole titles; the tokenizer cuts
        found.append(texts[key])
    return found
