"""What a trained SeqGAN says of users: the next items of each."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from itertools import islice

import numpy as np
import pyarrow as pa

from recsys_llm.config import Config, SequenceModelConfig
from recsys_llm.producers.arrays import list_array
from recsys_llm.producers.base import Due
from recsys_llm.producers.hashing import content_hashes
from recsys_llm.producers.over_histories import MODEL, OverHistories, model_manifest, model_of
from recsys_llm.producers.popular_items import Popular, popular_items
from recsys_llm.schema import (
    CENTROID,
    CONTENT_HASH,
    ENTROPY,
    EVENT_TIMESTAMP,
    HISTORY,
    IS_FALLBACK,
    ITEM_IDS,
    LOG_PROBS,
    MODEL_TRAINED_UNTIL,
    NEXT_QUERY,
    PROVENANCE,
    ROW_ID,
    USER_ID,
)
from recsys_llm.seqgan import Checkpoint, next_items
from recsys_llm.seqgan.prediction import NextItems as Predicted
from recsys_llm.seqgan.prediction import centroids
from recsys_llm.seqgan.rolling import RollingModel, Span
from recsys_llm.timestamps import TIMESTAMP


class NextItems(OverHistories):
    """A user's most likely next items after each group of tied events.

    A row computed from events up to a time before its model's training cut-off is stamped at the cut-off: from then
    on the model may be used, and each user has the row that was newest by then. Reserved user ids hold what users
    without a history are given: the most liked items of a segment, or of everyone, night by night.
    """

    features = pa.schema(
        [
            pa.field(ITEM_IDS, pa.list_(pa.string())),
            pa.field(LOG_PROBS, pa.list_(pa.float32())),
            pa.field(ENTROPY, pa.float32()),
            pa.field(CENTROID, pa.list_(pa.float32())),
            pa.field(NEXT_QUERY, pa.list_(pa.float32())),
            pa.field(MODEL_TRAINED_UNTIL, pa.string()),
            pa.field(PROVENANCE, pa.string()),
            pa.field(IS_FALLBACK, pa.bool_()),
            pa.field(ROW_ID, pa.int64()),
        ]
    )

    def __init__(self, config: Config, settings: SequenceModelConfig, models: RollingModel, *, device: str) -> None:
        super().__init__(config, settings, models, device=device)
        asked = {"top_n": settings.top_n, "granularity": settings.granularity, "filter_seen": self.filter_seen}
        cold = {"cold_start_days": settings.cold_start_days, "cold_start_users": settings.cold_start_users}
        self.manifest = model_manifest(models, features=self.features.names, **asked, **cold)
        if models.newest.encoder_fingerprint is not None:
            self.manifest["encoder_fingerprint"] = models.newest.encoder_fingerprint

    def inputs(self, start: datetime, end: datetime) -> Iterator[Due]:
        """Yield the rows due in (start, end], then those of cold users; see :meth:`OverHistories.due_rows`."""
        yield from self.due_rows(start, end)
        for span in self.models.spans(start, end):
            yield from self._cold_users(span)

    def compute(self, rows: pa.RecordBatch, events: pa.RecordBatch | None) -> pa.RecordBatch:
        """Predict after the prefix of ``events`` that each row names; one pass over each user's events."""
        checkpoint = self.models.checkpoints[model_of(rows)]
        if events is None:
            return self._of_popular(rows, checkpoint)
        histories, positions = self.histories(rows, events)
        predicted = next_items(
            checkpoint,
            histories,
            positions,
            self.settings.top_n,
            filter_seen=self.filter_seen,
            device=self.device,
        )
        return self.columns(predicted, checkpoint)

    def columns(self, predicted: Predicted, checkpoint: Checkpoint) -> pa.RecordBatch:
        """Return predictions from histories as feature columns, without the row id."""
        count = len(predicted.lengths)
        no_centroids = pa.nulls(count, pa.list_(pa.float32()))
        return self._batch(
            {
                ITEM_IDS: predicted.item_lists(),
                LOG_PROBS: predicted.log_prob_lists(),
                ENTROPY: pa.array(predicted.entropy),
                CENTROID: no_centroids if predicted.centroid is None else list_array(predicted.centroid),
                NEXT_QUERY: list_array(predicted.queries),
                MODEL_TRAINED_UNTIL: pa.array([checkpoint.trained_until.isoformat()] * count),
                PROVENANCE: pa.array([HISTORY] * count),
                IS_FALLBACK: pa.array([False] * count),
            }
        )

    def _cold_users(self, span: Span) -> Iterator[Due]:
        found = popular_items(
            self.config,
            days=self.settings.cold_start_days,
            count=self.settings.top_n,
            least_users=self.settings.cold_start_users,
            start=span.start,
            end=span.end,
            not_before=self.models.checkpoints[span.number].trained_until,
        )
        while some := list(islice(found, self.chunk_rows)):
            yield self._popular(some, span.number)

    def _popular(self, rows: list[Popular], model: int) -> Due:
        columns = {
            USER_ID: pa.array([row.user for row in rows]),
            EVENT_TIMESTAMP: pa.array([row.stamp for row in rows], pa.int64()).cast(TIMESTAMP),
            ITEM_IDS: pa.array([row.items for row in rows], pa.list_(pa.string())),
            LOG_PROBS: pa.array([np.log(row.shares) for row in rows], pa.list_(pa.float32())),
            ENTROPY: pa.array([row.entropy for row in rows], pa.float32()),
            PROVENANCE: pa.array([row.provenance for row in rows]),
        }
        hashes = content_hashes(self.manifest["fingerprint"], columns.values())
        columns |= {MODEL: pa.array([model] * len(rows)), CONTENT_HASH: hashes}
        return Due(pa.RecordBatch.from_pydict(columns))

    def _of_popular(self, rows: pa.RecordBatch, checkpoint: Checkpoint) -> pa.RecordBatch:
        """Return rows of popular items as feature columns: no model made them, so none can score other items."""
        count = rows.num_rows
        lists = rows.column(ITEM_IDS)
        columns = {name: rows.column(name) for name in (ITEM_IDS, LOG_PROBS, ENTROPY, PROVENANCE)}
        centroid = pa.nulls(count, pa.list_(pa.float32()))
        if checkpoint.padded_text is not None:
            padded = np.full((count, self.settings.top_n), -1)
            for row, items in enumerate(lists):
                padded[row, : len(items)] = checkpoint.vocabulary.encode(items.values)
            centroid = list_array(centroids(checkpoint.padded_text, padded))
        return self._batch(
            {
                **columns,
                CENTROID: centroid,
                NEXT_QUERY: pa.nulls(count, pa.list_(pa.float32())),
                MODEL_TRAINED_UNTIL: pa.nulls(count, pa.string()),
                IS_FALLBACK: pa.array([True] * count),
            }
        )

    def _batch(self, columns: dict[str, pa.Array]) -> pa.RecordBatch:
        names = [name for name in self.features.names if name != ROW_ID]
        return pa.RecordBatch.from_arrays([columns[name] for name in names], names=names)
