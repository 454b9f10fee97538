"""Where a sequence model is after each user's history, so that a new event can go on from there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from recsys_llm.config import Config, SequenceModelConfig
from recsys_llm.producers.arrays import list_array
from recsys_llm.producers.base import Due
from recsys_llm.producers.cutoff import check_cutoff
from recsys_llm.producers.over_histories import OverHistories, model_manifest
from recsys_llm.producers.user_rows import UserRows, user_rows, whole_users
from recsys_llm.schema import HAD_GROUPS, HAD_ITEMS, NEWEST_EVENT, STATE, STATE_FINGERPRINT
from recsys_llm.seqgan.rolling import RollingModel
from recsys_llm.seqgan.sequences import Sequences
from recsys_llm.seqgan.states import UserStates, states_after
from recsys_llm.timestamps import parse_granularity

_INTS = pa.list_(pa.int64())


class SequenceStates(OverHistories):
    """The newest state of each user in an interval; there is no use for older ones."""

    features = pa.schema(
        [
            pa.field(STATE, pa.list_(pa.float32())),
            pa.field(HAD_ITEMS, _INTS),
            pa.field(HAD_GROUPS, _INTS),
            pa.field(NEWEST_EVENT, pa.int64()),
            pa.field(STATE_FINGERPRINT, pa.string()),
        ]
    )

    def __init__(self, config: Config, settings: SequenceModelConfig, models: RollingModel, *, device: str) -> None:
        super().__init__(config, settings, models, device=device)
        asked = {"granularity": settings.granularity, "filter_seen": self.filter_seen}
        self.manifest = model_manifest(models, features=self.features.names, **asked)

    def inputs(self, start: datetime, end: datetime) -> Iterator[Due]:
        """Yield each user whose newest row in (start, end] is stamped at the newest model's training cut-off or later.

        Raises
        ------
        LeakageError
            ``end`` lies before that cut-off.
        """
        cutoff = self.models.newest.trained_until
        check_cutoff(self.settings.checkpoint, cutoff, end)
        period = parse_granularity(self.settings.granularity)
        for events in whole_users(self.config, end):
            rows = _newest(user_rows(events, period=period, start=start, end=end, not_before=cutoff))
            if len(rows.stamp):
                yield self.due(events, rows, len(self.models.checkpoints) - 1)

    def compute(self, rows: pa.RecordBatch, events: pa.RecordBatch | None) -> pa.RecordBatch:
        """Read the history of each of ``rows``."""
        assert events is not None  # inputs() always hands them over
        histories, positions = self.histories(rows, events)
        model = self.models.newest
        return self.columns(states_after(model, histories, positions, filter_seen=self.filter_seen, device=self.device))

    def columns(self, states: UserStates) -> pa.RecordBatch:
        """Return states as feature columns."""
        memory = states.memory
        columns = [
            list_array(states.vectors),
            _lists(memory.group_offsets[memory.user_offsets], memory.items),
            _lists(memory.user_offsets, memory.group_sizes()),
            pa.array(states.newest, pa.int64()),
            pa.array([self.manifest["fingerprint"]] * len(states.newest), pa.string()),
        ]
        return pa.RecordBatch.from_arrays(columns, names=self.features.names)


def states_from(
    vectors: Sequence[Sequence[float]],
    items: Sequence[Sequence[int]],
    groups: Sequence[Sequence[int]],
    newest: Sequence[int],
) -> UserStates:
    """Return the states that n users' columns hold; the inverse of :meth:`SequenceStates.columns`."""
    sizes = np.array([size for user in groups for size in user], np.int64)
    memory = Sequences(
        np.array([item for user in items for item in user], np.int64),
        np.concatenate([[0], np.cumsum(sizes)]),
        np.concatenate([[0], np.cumsum([len(user) for user in groups])]),
        np.zeros(len(sizes), np.int64),  # when, no list of next items asks
    )
    return UserStates(np.array(vectors, np.float32), memory, np.array(newest, np.int64))


def _newest(rows: UserRows) -> UserRows:
    """Return the last row of each user."""
    is_last = np.append(rows.first[1:] != rows.first[:-1], True)[: len(rows.first)]
    return UserRows(rows.first[is_last], rows.end[is_last], rows.stamp[is_last])


def _lists(offsets: npt.NDArray[np.int64], values: npt.NDArray[np.int64]) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(values))
