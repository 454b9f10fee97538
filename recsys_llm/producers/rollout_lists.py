"""What a sequence model expects of a user within the next steps."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

import numpy as np
import pyarrow as pa

from recsys_llm.config import Config, SequenceModelConfig
from recsys_llm.producers.base import Due
from recsys_llm.producers.over_histories import OverHistories, model_manifest, model_of
from recsys_llm.schema import CONTENT_HASH, ROLLOUT_ITEMS, ROLLOUT_SHARES, ROW_ID
from recsys_llm.seqgan.rolling import RollingModel
from recsys_llm.seqgan.rollout_lists import rollout_lists


class RolloutLists(OverHistories):
    """The items that sampled continuations of a history hold most often, after each group of tied events.

    The random numbers of a row follow from its content hash, so that computing it again gives the same list.
    """

    features = pa.schema(
        [
            pa.field(ROLLOUT_ITEMS, pa.list_(pa.string())),
            pa.field(ROLLOUT_SHARES, pa.list_(pa.float32())),
            pa.field(ROW_ID, pa.int64()),
        ]
    )

    def __init__(self, config: Config, settings: SequenceModelConfig, models: RollingModel, *, device: str) -> None:
        super().__init__(config, settings, models, device=device)
        asked = {"top_n": settings.top_n, "granularity": settings.granularity, "filter_seen": self.filter_seen}
        self.manifest = model_manifest(models, features=self.features.names, **asked, **settings.rollouts.model_dump())

    def inputs(self, start: datetime, end: datetime) -> Iterator[Due]:
        """Yield the rows due in (start, end]; see :meth:`OverHistories.due_rows`."""
        return self.due_rows(start, end)

    def compute(self, rows: pa.RecordBatch, events: pa.RecordBatch | None) -> pa.RecordBatch:
        """Continue the prefix of ``events`` that each row names."""
        assert events is not None  # inputs() always hands them over
        checkpoint = self.models.checkpoints[model_of(rows)]
        histories, positions = self.histories(rows, events)
        seeds = np.array([int.from_bytes(content[:7]) for content in rows.column(CONTENT_HASH).to_pylist()])
        found = rollout_lists(
            checkpoint,
            histories,
            positions,
            seeds,
            self.settings.top_n,
            samples=self.settings.rollouts.samples,
            steps=self.settings.rollouts.steps,
            filter_seen=self.filter_seen,
            device=self.device,
        )
        return pa.RecordBatch.from_arrays(list(found), names=[ROLLOUT_ITEMS, ROLLOUT_SHARES])
