"""What the contestants of ``evaluate next-items`` are given: events, a catalogue, and the groups to predict.

Nothing is learned from events at or after the cut-off T. A group at t > T is predicted from its user's own groups
before t, among the items of the vocabulary and those whose text was known before t.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from recsys_llm.bench.split import read_split
from recsys_llm.config import Config, TextEncoderConfig
from recsys_llm.errors import DataError
from recsys_llm.producers import encoder_model
from recsys_llm.schema import EVENT_TIMESTAMP
from recsys_llm.seqgan import Histories, ItemVectors, Vocabulary
from recsys_llm.seqgan.evaluation import sample_groups, split_time
from recsys_llm.seqgan.histories import Ints, sorted_interactions
from recsys_llm.seqgan.sequences import Sequences
from recsys_llm.seqgan.training import REPEATS_ARE_RARE
from recsys_llm.seqgan.vocabulary import UNKNOWN
from recsys_llm.sources import tables
from recsys_llm.text import TextEncoder
from recsys_llm.text.pairs import item_texts
from recsys_llm.timestamps import MICROSECOND, from_micros, to_micros

Split = Literal["global-time", "leave-one-out"]
ALWAYS = np.iinfo(np.int64).min


@dataclass(frozen=True, eq=False)
class Tasks:
    """Groups to predict, in order of user and time."""

    groups: Ints
    """(n,) flat index in the world's sequences."""
    users: Ints
    """(n,) ascending."""
    read: Ints
    """(n,) groups of that user before."""

    def __len__(self) -> int:
        return len(self.groups)

    @classmethod
    def of(cls, sequences: Sequences, groups: Ints) -> Tasks:
        """Return the tasks of predicting ``groups``, flat indexes in ascending order."""
        return cls(groups, *sequences.read_before(groups))

    def take(self, rows: npt.NDArray[np.generic]) -> Tasks:
        """Return some of the tasks, by a mask or ascending positions."""
        return Tasks(self.groups[rows], self.users[rows], self.read[rows])


@dataclass(frozen=True, eq=False)
class World:
    """Everything that is read; made by :func:`read_world` or :func:`make_world`."""

    interactions: pa.Table
    """Canonical, sorted by user, time and item."""
    until: datetime
    """T, the training cut-off."""
    histories: Histories
    vocabulary: Vocabulary
    """Items with an event, or a text, before T."""
    item_ids: tuple[str, ...]
    """(I,) the catalogue: the vocabulary, then items whose text became known from T on."""
    known_from: Ints
    """(I,) microseconds since when an item is a candidate."""
    sequences: Sequences
    """All events, as positions in the catalogue; -1 for an item that is not in it."""
    counts: Ints
    """(I,) events before T."""
    text: npt.NDArray[np.float32]
    """(I, dim), zero rows where there is none."""
    train_vectors: ItemVectors
    """Of the texts before T."""
    all_vectors: ItemVectors
    """Of the whole catalogue, to read histories with."""
    filter_seen: bool
    """Whether repeats are rare enough before T to leave out what a user has had, as a checkpoint decides it."""
    tasks: Tasks
    """To be predicted, after T."""

    @property
    def cold(self) -> npt.NDArray[np.bool_]:
        """(I,) whether nobody had an event with the item before T."""
        return np.asarray(self.counts == 0)

    def before(self) -> Sequences:
        """Return the events before T."""
        return self.sequences.before(to_micros(self.until))

    def validation(self, share: float, largest: int) -> tuple[Sequences, Tasks]:
        """Return the events before the validation slice, and at most ``largest`` groups in it; all lies before T."""
        split = split_time(self.before(), share)
        groups = sample_groups(self.sequences, split, to_micros(self.until), largest, 0)
        return self.sequences.before(split), Tasks.of(self.sequences, groups)

    def unavailable(self, tasks: Tasks) -> npt.NDArray[np.bool_]:
        """Return which items of the catalogue were not yet known when a group was to be predicted, (n, I)."""
        return np.asarray(self.known_from[None, :] >= self.sequences.timestamps[tasks.groups][:, None])


def read_world(
    config: Config,
    encoder: str,
    *,
    split: Split = "global-time",
    train_share: float = 0.8,
    largest: int = 5000,
    max_tokens: int = 256,
    device: str = "auto",
) -> World:
    """Read a repository's tables, and encode the texts of its items.

    Parameters
    ----------
    encoder
        Name under ``text_encoders``.
    split
        "global-time": every group from T on. "leave-one-out": of each user the last group, where it lies after T; the
        usual leave-one-out trains on other users' later events, which nobody would have had (Ji et al. 2023, "A
        Critical Study on Data Leakage in Recommender System Offline Evaluation").
    train_share
        Share of the events that come before T.
    largest
        More groups than this are sampled, uniformly.
    max_tokens
        Tokens read of each text, at most the encoder's own limit.

    Raises
    ------
    DataError
        There are too few events to split in time, or no group to predict.
    """
    settings: TextEncoderConfig = config.text_encoders[encoder]
    interactions, until, end = read_split(config, train_share)
    source = config.sources.items.origin
    early = item_texts(tables.items(config, end=until - MICROSECOND), settings, until=until, source=source)
    late = item_texts(tables.items(config, end=end - MICROSECOND), settings, until=end, source=source)
    model = TextEncoder.load(
        encoder_model(settings, config),
        device=device,
        max_tokens=min(max_tokens, settings.max_tokens),
        pooling=settings.pooling,
        normalize=settings.normalize,
    )
    known = set(early.ids)
    new = [place for place, item in enumerate(late.ids) if item not in known]
    vectors = model.encode([*early.texts, *(late.texts[place] for place in new)])
    return make_world(
        interactions,
        until,
        (tuple([*early.ids, *(late.ids[place] for place in new)]), vectors, model.fingerprint),
        np.concatenate([np.full(len(early), ALWAYS), late.times[new]]),
        split=split,
        largest=largest,
    )


def make_world(
    interactions: pa.Table,
    until: datetime,
    texts: tuple[Sequence[str], npt.NDArray[np.float32], str],
    known_from: Ints,
    *,
    split: Split = "global-time",
    largest: int = 5000,
) -> World:
    """Return the world of some events and item vectors.

    Parameters
    ----------
    interactions
        Canonical, in any order.
    until
        T.
    texts
        Item ids, their vectors float32 (n, dim), and the fingerprint of the encoder.
    known_from : int64 (n,)
        Since when each text is known, microseconds since the epoch; before T it belongs to the vocabulary.
    split, largest
        As in :func:`read_world`.

    Raises
    ------
    DataError
        There is no group to predict, or no event before T.
    """
    ids, vectors, fingerprint = texts
    table = sorted_interactions(interactions)
    histories = Histories.from_interactions(table)
    cutoff = to_micros(until)
    early = known_from < cutoff
    names = np.array(ids, object)
    train_vectors = ItemVectors(tuple(names[early]), vectors[early], fingerprint)
    past = table.filter(pa.compute.less(table[EVENT_TIMESTAMP], pa.scalar(until, table[EVENT_TIMESTAMP].type)))
    if not past.num_rows:
        raise DataError(f"expected events before {until}, found none")
    vocabulary = Vocabulary.build(past["item_id"], train_vectors.item_ids)
    place = vocabulary.encode(pa.array(ids, pa.string()))
    # An item whose text is stamped after its first event was bought before it was described: leave it out.
    new = np.flatnonzero((place == UNKNOWN) & (known_from <= _first_event(histories, ids)))
    catalogue = (*vocabulary.item_ids, *names[new])
    sequences = Sequences.encode(histories, Vocabulary(catalogue))
    text = np.zeros((len(catalogue), vectors.shape[1]), np.float32)
    text[place[place != UNKNOWN]] = vectors[place != UNKNOWN]
    text[len(vocabulary) :] = vectors[new]
    in_world = np.concatenate([np.flatnonzero(early), new])
    before = sequences.before(cutoff)
    return World(
        interactions=table,
        until=until,
        histories=histories,
        vocabulary=vocabulary,
        item_ids=catalogue,
        known_from=np.concatenate([np.full(len(vocabulary), ALWAYS), known_from[new]]),
        sequences=sequences,
        counts=np.bincount(before.items, minlength=len(catalogue)),
        text=text,
        train_vectors=train_vectors,
        all_vectors=ItemVectors(tuple(names[in_world]), vectors[in_world], fingerprint),
        filter_seen=before.repeat_share() < REPEATS_ARE_RARE,
        tasks=_tasks(sequences, cutoff, split, largest),
    )


def _first_event(histories: Histories, ids: Sequence[str]) -> Ints:
    first = np.full(len(ids), np.iinfo(np.int64).max)
    place = Vocabulary(tuple(ids)).encode(histories.item_ids)
    times = np.repeat(histories.timestamps, np.diff(histories.group_offsets))
    np.minimum.at(first, place[place != UNKNOWN], times[place != UNKNOWN])
    return first


def _tasks(sequences: Sequences, cutoff: int, split: Split, largest: int) -> Tasks:
    end = int(sequences.timestamps.max(initial=0)) + 1
    groups = sample_groups(sequences, cutoff, end, largest if split == "global-time" else len(sequences.timestamps), 0)
    if split == "leave-one-out":
        last = np.unique(sequences.user_offsets[1:][np.diff(sequences.user_offsets) > 0] - 1)
        groups = np.intersect1d(groups, last)
        if len(groups) > largest:
            groups = np.sort(np.random.default_rng(0).choice(groups, largest, replace=False))
    if not len(groups):
        raise DataError(f"evaluation: expected events from {from_micros(cutoff)} on, found none; use more events")
    return Tasks.of(sequences, groups)
