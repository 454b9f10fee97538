"""Events split in time: what comes before T is learned from, what comes after is predicted."""

from __future__ import annotations

from datetime import datetime

import numpy as np
import pyarrow as pa

from recsys_llm.config import Config
from recsys_llm.errors import DataError
from recsys_llm.schema import EVENT_TIMESTAMP
from recsys_llm.sources import tables
from recsys_llm.timestamps import from_micros


def read_split(config: Config, train_share: float) -> tuple[pa.Table, datetime, datetime]:
    """Return a repository's interactions by time, T, and the time of the last event.

    Parameters
    ----------
    train_share
        Share of the events that come before T.

    Raises
    ------
    DataError
        There are too few events to split.
    """
    interactions = pa.Table.from_batches(
        list(tables.interactions(config, order_by="time")), schema=tables.INTERACTIONS_SCHEMA
    )
    times = np.sort(interactions.column(EVENT_TIMESTAMP).cast(pa.int64()).to_numpy())
    if len(times) < 2:
        raise DataError(f"expected events to split in time, found {len(times)}")
    return interactions, from_micros(int(times[int(len(times) * train_share)])), from_micros(int(times[-1]))
