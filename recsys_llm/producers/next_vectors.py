"""Vectors of items that score them for any user."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from recsys_llm.config import Config, SequenceModelConfig
from recsys_llm.producers.arrays import list_array
from recsys_llm.producers.base import Due
from recsys_llm.producers.cutoff import check_cutoff
from recsys_llm.producers.hashing import content_hashes
from recsys_llm.producers.over_histories import MODEL, model_manifest, model_of
from recsys_llm.schema import CONTENT_HASH, EVENT_TIMESTAMP, ITEM_ID, NEXT_VECTOR, ROW_ID
from recsys_llm.seqgan import scoring_vectors
from recsys_llm.seqgan.rolling import RollingModel
from recsys_llm.timestamps import TIMESTAMP

_PLACE = "place"


class NextVectors:
    """A vector of each item of a model's vocabulary, stamped at the model's training cut-off.

    With a user's ``next_query``, it gives the log-probability that the item comes next: of any candidate, not only of
    those in the user's list.
    """

    join_key = ITEM_ID
    unit = "rows"
    features = pa.schema([pa.field(NEXT_VECTOR, pa.list_(pa.float32())), pa.field(ROW_ID, pa.int64())])

    def __init__(self, config: Config, settings: SequenceModelConfig, models: RollingModel) -> None:
        self.settings = settings
        self.models = models
        self.chunk_rows = config.chunk_rows
        self.manifest = model_manifest(models, features=self.features.names)
        self._newest: tuple[int, npt.NDArray[np.float32]] | None = None

    def inputs(self, start: datetime, end: datetime) -> Iterator[Due]:
        """Yield all items of each model whose training cut-off lies in (start, end].

        Raises
        ------
        LeakageError
            ``end`` lies before the first training cut-off.
        """
        check_cutoff(self.settings.checkpoint, self.models.checkpoints[0].trained_until, end)
        for number, checkpoint in enumerate(self.models.checkpoints):
            if not start < checkpoint.trained_until <= end:
                continue
            items = pa.array(checkpoint.vocabulary.item_ids, pa.string())
            stamps = pa.repeat(pa.scalar(checkpoint.trained_until, TIMESTAMP), len(items))
            columns = {
                ITEM_ID: items,
                EVENT_TIMESTAMP: stamps,
                CONTENT_HASH: content_hashes(self.manifest["fingerprint"], [items, stamps]),
                _PLACE: pa.array(range(len(items))),
                MODEL: pa.array([number] * len(items)),
            }
            yield Due(pa.RecordBatch.from_pydict(columns))

    def compute(self, rows: pa.RecordBatch, events: pa.RecordBatch | None) -> pa.RecordBatch:
        """Return the vectors of ``rows``."""
        vectors = self._of_model(model_of(rows))
        some = list_array(vectors[rows.column(_PLACE).to_numpy()])
        return pa.RecordBatch.from_arrays([some], names=[NEXT_VECTOR])

    def _of_model(self, number: int) -> npt.NDArray[np.float32]:
        """Return all vectors of a model; chunks of one follow each other."""
        if self._newest is None or self._newest[0] != number:
            self._newest = number, scoring_vectors(self.models.checkpoints[number])
        return self._newest[1]

    def cost(self, rows: pa.RecordBatch) -> int:
        """Return the number of rows."""
        return int(rows.num_rows)
