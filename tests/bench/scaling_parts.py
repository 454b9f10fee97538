"""Parts of vectors without a repository."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from recsys_llm import schema
from recsys_llm.timestamps import BEGINNING, TIMESTAMP


def write_part(repository: Path, view: str, ids: list[str], *, shift: float = 0.0) -> None:
    """Write a part of one row for each item, with vectors of three floats."""
    folder = repository / "data" / "features" / view
    folder.mkdir(parents=True)
    table = pa.table(
        {
            schema.ITEM_ID: pa.array(ids),
            schema.EMBEDDING: pa.array([[n + shift, 0.0, 1.0] for n in range(len(ids))], pa.list_(pa.float32())),
            schema.EVENT_TIMESTAMP: pa.array([BEGINNING] * len(ids), TIMESTAMP),
        }
    )
    pq.write_table(table, folder / "part-0.parquet")
