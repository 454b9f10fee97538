"""Judge rankers as they would be used: each test event's item against the whole catalogue of its day."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from recsys_llm.errors import ModelError
from recsys_llm.ranking.bootstrap import Interval, paired_difference
from recsys_llm.ranking.events import Catalogue, Events, Floats, Ints, Strings, positions, read_catalogue, read_events
from recsys_llm.ranking.metrics import hit_rate, ndcg, rank_of, reciprocal_rank
from recsys_llm.retrieval.blocks import EntityBlock, FeatureBatch
from recsys_llm.schema import EVENT_TIMESTAMP, ITEM, ITEM_ID, USER, USER_ID
from recsys_llm.timestamps import to_micros

DAY = 86_400_000_000
"""Microseconds."""
NDCG, HR, MRR = "ndcg_at_10", "hr_at_10", "mrr"
METRICS = (NDCG, HR, MRR)
_PAIRS = 200_000
"""User-item pairs scored at once (at least one event's): some 16 MB of columns."""


class History(Protocol):
    """Features as of given moments; :class:`recsys_llm.retrieval.FeatureClient`."""

    def entity_history(
        self, entity: str, ids: Strings, timestamps: pd.DatetimeIndex, *, service: str
    ) -> tuple[EntityBlock, Mapping[str, str | None]]:
        """Return a block of one row for each id and moment, in their order."""
        ...


class Scorer(Protocol):
    """Scores pairs; :class:`recsys_llm.ranking.ranker.Ranker`."""

    def score(self, batch: FeatureBatch) -> Floats:
        """Return float32 (n,), higher is better."""
        ...
