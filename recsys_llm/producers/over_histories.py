"""What the features that a sequence model makes of users' histories share: which rows are due, and their histories."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from hashlib import blake2b

import numpy as np
import pyarrow as pa

from recsys_llm.config import Config, SequenceModelConfig
from recsys_llm.producers.base import Due
from recsys_llm.producers.cutoff import check_cutoff
from recsys_llm.producers.hashing import HASH_BYTES, content_hashes, fingerprint_of
from recsys_llm.producers.user_rows import UserRows, new_events, refuse_reserved, user_rows, whole_users
from recsys_llm.schema import CONTENT_HASH, EVENT_TIMESTAMP, ITEM_ID, USER_ID
from recsys_llm.seqgan import Histories
from recsys_llm.seqgan.histories import Ints
from recsys_llm.seqgan.rolling import RollingModel
from recsys_llm.timestamps import TIMESTAMP, parse_granularity

_FIRST = "first"
_END = "end"
MODEL = "model"
"""Column of due rows: place of the model that makes them; the same in all rows of one :class:`Due`."""


class OverHistories:
    """Part of the producers whose rows are computed from users' histories by a sequence model."""

    features: pa.Schema
    manifest: dict[str, str]
    join_key = USER_ID
    unit = "rows"

    def __init__(self, config: Config, settings: SequenceModelConfig, models: RollingModel, *, device: str) -> None:
        self.config = config
        self.settings = settings
        self.models = models
        self.device = device
        self.chunk_rows = config.chunk_rows
        self.filter_seen = models.newest.filter_seen if settings.filter_seen is None else settings.filter_seen

    def cost(self, rows: pa.RecordBatch) -> int:
        """Return the number of rows."""
        return int(rows.num_rows)

    def due_rows(self, start: datetime, end: datetime) -> Iterator[Due]:
        """Yield the rows due in (start, end], each of the newest model whose training cut-off lies before it.

        Raises
        ------
        LeakageError
            ``end`` lies before the first training cut-off, so every row would come from its own future.
        RowError
            A user has a reserved id.
        """
        check_cutoff(self.settings.checkpoint, self.models.checkpoints[0].trained_until, end)
        period = parse_granularity(self.settings.granularity)
        spans = list(self.models.spans(start, end))
        for events in whole_users(self.config, end):
            refuse_reserved(events.column(USER_ID).unique().to_pylist(), "sources.interactions")
            for span in spans:
                cutoff = self.models.checkpoints[span.number].trained_until
                rows = user_rows(events, period=period, start=span.start, end=span.end, not_before=cutoff)
                if len(rows.stamp):
                    yield self.due(events, rows, span.number)

    def due(self, events: pa.RecordBatch, rows: UserRows, model: int) -> Due:
        """Return ``rows`` with the hash of all that they depend on; ``model`` is the place of the one that makes
        them.
        """
        keys = events.column(USER_ID).take(pa.array(rows.first))
        stamps = pa.array(rows.stamp, pa.int64()).cast(TIMESTAMP)
        columns = {
            USER_ID: keys,
            EVENT_TIMESTAMP: stamps,
            _FIRST: pa.array(rows.first),
            _END: pa.array(rows.end),
            MODEL: pa.array(np.full(len(keys), model)),
            CONTENT_HASH: content_hashes(self.manifest["fingerprint"], [keys, stamps, _prefix_hashes(events, rows)]),
        }
        return Due(pa.RecordBatch.from_pydict(columns), events)

    def histories(self, rows: pa.RecordBatch, events: pa.RecordBatch) -> tuple[Histories, Ints]:
        """Return the histories that ``rows`` end, and the place of each row's newest group."""
        first, end = rows.column(_FIRST).to_numpy(), rows.column(_END).to_numpy()
        low, high = int(first.min()), int(end.max())
        histories = Histories.from_interactions(pa.Table.from_batches([events.slice(low, high - low)]))
        return histories, np.searchsorted(histories.group_offsets, end - 1 - low, side="right") - 1


def model_of(rows: pa.RecordBatch) -> int:
    """Return the place of the model that makes ``rows``, which are of one :class:`Due`."""
    return int(rows.column(MODEL)[0].as_py())


def model_manifest(models: RollingModel, **settings: object) -> dict[str, str]:
    """Return the fingerprints of a view: of models and settings together, and of the models alone."""
    fingerprint = fingerprint_of({"checkpoint": models.fingerprint, **settings})
    return {"fingerprint": fingerprint, "sequence_fingerprint": models.fingerprint}


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
