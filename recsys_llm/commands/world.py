"""The tables that a quickstart runs on, and the moments at which they are split."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pyarrow as pa

from recsys_llm.commands.data import DataChoice
from recsys_llm.config import Config


@dataclass(frozen=True)
class World:
    """The tables of a run, and the moments at which they are split."""

    choice: DataChoice
    repository: Path
    config: Config
    items: pa.Table
    interactions: pa.Table
    train_until: datetime
    """T1: the SeqGAN and all counts know events strictly before it."""
    rank_until: datetime
    """T2: rankers are trained on events in (T1, T2], everything is tested on events after it."""
