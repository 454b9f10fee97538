"""What a model's training cut-off means for its rows: none is stamped earlier.

Of the rows of one key that would be stamped by then, only the newest is kept, stamped at the cut-off. So each key has a
row from the moment on at which the model may be used, and intervals that follow each other give what one long one does.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from recsys_llm.config import Config
from recsys_llm.errors import LeakageError
from recsys_llm.schema import EVENT_TIMESTAMP, ITEM_ID
from recsys_llm.sources import tables, whole_keys
from recsys_llm.timestamps import TIMESTAMP, to_micros

BATCH_ROWS = 8_192
"""Twice the encoder's window; the texts of a batch are held as Python strings."""


def check_cutoff(model: str, trained_until: datetime | None, end: datetime) -> None:
    """Refuse an interval whose rows would all come from the model's own past.

    Raises
    ------
    LeakageError
        ``end`` lies before the model's training cut-off; None: the model was trained elsewhere.
    """
    if trained_until is not None and end < trained_until:
        raise LeakageError(
            f"{model} was trained on data up to {trained_until}; it can't produce rows up to {end}. Materialise to a "
            "later end, or train a model until an earlier time"
        )


def item_versions(
    config: Config, start: datetime, end: datetime, trained_until: datetime | None
) -> Iterator[tuple[pa.RecordBatch, pa.Array]]:
    """Yield the items whose rows are stamped in (start, end], and the stamps (timestamp[us, UTC])."""
    if trained_until is None or trained_until <= start:
        for batch in tables.items(config, start=start, end=end, batch_rows=BATCH_ROWS):
            yield batch, batch.column(EVENT_TIMESTAMP)
        return
    cutoff = to_micros(trained_until)
    for batch in whole_keys(tables.items(config, end=end), ITEM_ID, batch_rows=BATCH_ROWS):
        times = batch.column(EVENT_TIMESTAMP).cast(pa.int64()).to_numpy()
        kept = pa.array(~_superseded(batch.column(ITEM_ID), times, cutoff))
        yield batch.filter(kept), pa.array(np.maximum(times, cutoff)).filter(kept).cast(TIMESTAMP)


def _superseded(keys: pa.Array, times: npt.NDArray[np.int64], cutoff: int) -> npt.NDArray[np.bool_]:
    """Return which rows have a newer one of their key by the cut-off; rows are ordered by key and time."""
    codes = keys.dictionary_encode().indices.to_numpy()
    return np.append((codes[1:] == codes[:-1]) & (times[1:] <= cutoff), False)[: len(times)]
