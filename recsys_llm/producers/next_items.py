"""What a trained SeqGAN says of users and items: the next items of each user, and vectors that score any item."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from hashlib import blake2b

import numpy as np
import pyarrow as pa

from recsys_llm.config import Config, SequenceModelConfig
from recsys_llm.producers.arrays import list_array
from recsys_llm.producers.base import Due
from recsys_llm.producers.cutoff import check_cutoff
from recsys_llm.producers.hashing import HASH_BYTES, content_hashes, fingerprint_of
from recsys_llm.producers.user_rows import UserRows, new_events, user_rows, whole_users
from recsys_llm.schema import (
    CENTROID,
    CONTENT_HASH,
    ENTROPY,
    EVENT_TIMESTAMP,
    ITEM_ID,
    ITEM_IDS,
    LOG_PROBS,
    NEXT_QUERY,
    NEXT_VECTOR,
    ROW_ID,
    USER_ID,
)
from recsys_llm.seqgan import Checkpoint, Histories, next_items, scoring_vectors
from recsys_llm.timestamps import TIMESTAMP, parse_granularity

_FIRST = "first"
_END = "end"
_PLACE = "place"


class NextItems:
    """A user's most likely next items after each group of tied events.

    A row computed from events up to a time before the model's training cut-off is stamped at the cut-off: from then
    on the model may be used, and each user has the row that was newest by then.
    """

    join_key = USER_ID
    unit = "rows"

    def __init__(self, config: Config, settings: SequenceModelConfig, checkpoint: Checkpoint, *, device: str) -> None:
        self.config = config
        self.settings = settings
        self.checkpoint = checkpoint
        self.device = device
        self.chunk_rows = config.chunk_rows
        self.features = pa.schema(
            [
                pa.field(ITEM_IDS, pa.list_(pa.string())),
                pa.field(LOG_PROBS, pa.list_(pa.float32())),
                pa.field(ENTROPY, pa.float32()),
                pa.field(CENTROID, pa.list_(pa.float32())),
                pa.field(NEXT_QUERY, pa.list_(pa.float32())),
                pa.field(ROW_ID, pa.int64()),
            ]
        )
        self.filter_seen = checkpoint.filter_seen if settings.filter_seen is None else settings.filter_seen
        asked = {"top_n": settings.top_n, "granularity": settings.granularity, "filter_seen": self.filter_seen}
        self.manifest = _manifest(checkpoint, features=self.features.names, **asked)
        if checkpoint.encoder_fingerprint is not None:
            self.manifest["encoder_fingerprint"] = checkpoint.encoder_fingerprint

    def inputs(self, start: datetime, end: datetime) -> Iterator[Due]:
        """Yield the predictions due in (start, end].

        Raises
        ------
        LeakageError
            ``end`` lies before the model's training cut-off, so every row would come from its own future.
        """
        trained_until = self.checkpoint.trained_until
        check_cutoff(self.settings.checkpoint, trained_until, end)
        period = parse_granularity(self.settings.granularity)
        for events in whole_users(self.config, end):
            rows = user_rows(events, period=period, start=start, end=end, not_before=trained_until)
            if len(rows.stamp):
                yield self._due(events, rows)

    def compute(self, rows: pa.RecordBatch, events: pa.RecordBatch | None) -> pa.RecordBatch:
        """Predict after the prefix of ``events`` that each row names; one pass over each user's events."""
        assert events is not None  # inputs() always hands them over
        first, end = rows.column(_FIRST).to_numpy(), rows.column(_END).to_numpy()
        low, high = int(first.min()), int(end.max())
        histories = Histories.from_interactions(pa.Table.from_batches([events.slice(low, high - low)]))
        positions = np.searchsorted(histories.group_offsets, end - 1 - low, side="right") - 1
        predicted = next_items(
            self.checkpoint,
            histories,
            positions,
            self.settings.top_n,
            filter_seen=self.filter_seen,
            device=self.device,
        )
        no_centroids = pa.nulls(rows.num_rows, pa.list_(pa.float32()))
        centroids = no_centroids if predicted.centroid is None else list_array(predicted.centroid)
        lists, queries = (predicted.item_lists(), predicted.log_prob_lists()), list_array(predicted.queries)
        columns = [*lists, pa.array(predicted.entropy), centroids, queries]
        return pa.RecordBatch.from_arrays(columns, names=[ITEM_IDS, LOG_PROBS, ENTROPY, CENTROID, NEXT_QUERY])

    def cost(self, rows: pa.RecordBatch) -> int:
        """Return the number of rows."""
        return int(rows.num_rows)

    def _due(self, events: pa.RecordBatch, rows: UserRows) -> Due:
        keys = events.column(USER_ID).take(pa.array(rows.first))
        stamps = pa.array(rows.stamp, pa.int64()).cast(TIMESTAMP)
        hashes = content_hashes(self.manifest["fingerprint"], [keys, stamps, _prefix_hashes(events, rows)])
        columns = {
            USER_ID: keys,
            EVENT_TIMESTAMP: stamps,
            _FIRST: pa.array(rows.first),
            _END: pa.array(rows.end),
            CONTENT_HASH: hashes,
        }
        return Due(pa.RecordBatch.from_pydict(columns), events)


class NextVectors:
    """A vector of each item of the model's vocabulary, stamped at the model's training cut-off.

    With a user's ``next_query``, it gives the log-probability that the item comes next: of any candidate, not only of
    those in the user's list.
    """

    join_key = ITEM_ID
    unit = "rows"
    features = pa.schema([pa.field(NEXT_VECTOR, pa.list_(pa.float32())), pa.field(ROW_ID, pa.int64())])

    def __init__(self, config: Config, settings: SequenceModelConfig, checkpoint: Checkpoint) -> None:
        self.settings = settings
        self.checkpoint = checkpoint
        self.chunk_rows = config.chunk_rows
        self.manifest = _manifest(checkpoint, features=self.features.names)
        self._vectors = scoring_vectors(checkpoint)

    def inputs(self, start: datetime, end: datetime) -> Iterator[Due]:
        """Yield all items if the training cut-off lies in (start, end].

        Raises
        ------
        LeakageError
            ``end`` lies before the model's training cut-off.
        """
        trained_until = self.checkpoint.trained_until
        check_cutoff(self.settings.checkpoint, trained_until, end)
        if start >= trained_until:
            return
        items = pa.array(self.checkpoint.vocabulary.item_ids, pa.string())
        stamps = pa.repeat(pa.scalar(trained_until, TIMESTAMP), len(items))
        hashes = content_hashes(self.manifest["fingerprint"], [items, stamps])
        columns = {ITEM_ID: items, EVENT_TIMESTAMP: stamps, CONTENT_HASH: hashes, _PLACE: pa.array(range(len(items)))}
        yield Due(pa.RecordBatch.from_pydict(columns))

    def compute(self, rows: pa.RecordBatch, events: pa.RecordBatch | None) -> pa.RecordBatch:
        """Return the vectors of ``rows``."""
        vectors = self._vectors[rows.column(_PLACE).to_numpy()]
        return pa.RecordBatch.from_arrays([list_array(vectors)], names=[NEXT_VECTOR])

    def cost(self, rows: pa.RecordBatch) -> int:
        """Return the number of rows."""
        return int(rows.num_rows)


def _manifest(checkpoint: Checkpoint, **settings: object) -> dict[str, str]:
    fingerprint = fingerprint_of({"checkpoint": checkpoint.fingerprint, **settings})
    return {"fingerprint": fingerprint, "sequence_fingerprint": checkpoint.fingerprint}


def _prefix_hashes(events: pa.RecordBatch, rows: UserRows) -> pa.Array:
    """Return the hash of the events from each row's first to its newest; each event is hashed once."""
    items = events.column(ITEM_ID).to_pylist()
    times = events.column(EVENT_TIMESTAMP).cast(pa.int64()).to_pylist()
    digests: list[bytes] = []
    running = blake2b(digest_size=HASH_BYTES)
    for is_new_user, events_since in new_events(rows):
        if is_new_user:
            running = blake2b(digest_size=HASH_BYTES)
        for event in events_since:
            running.update(f"{times[event]}\x1f{items[event]}\x1e".encode())
        digests.append(running.digest())
    return pa.array(digests, pa.binary(HASH_BYTES))
