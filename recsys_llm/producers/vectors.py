"""Reading back an item embedding view: the text vectors that a sequence model starts from."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from recsys_llm.errors import DataError
from recsys_llm.producers.parts import part_files, read_manifest
from recsys_llm.schema import CREATED_TIMESTAMP, EMBEDDING, EVENT_TIMESTAMP, ITEM_ID
from recsys_llm.seqgan import ItemVectors


def item_vectors(directory: Path, view: str, *, before: datetime) -> ItemVectors:
    """Return the text vector of each item known strictly before a time, in its newest version by then.

    Parameters
    ----------
    directory
        Where the parts of ``view`` lie.

    Raises
    ------
    DataError
        There are no vectors of that time.
    """
    files = part_files(directory)
    if not files:
        raise DataError(f"{directory}: no parts; run `feast materialize START END -v {view}` first")
    query = f"""
        SELECT {ITEM_ID}, {EMBEDDING} FROM read_parquet(?) WHERE {EVENT_TIMESTAMP} < ?
        QUALIFY row_number() OVER (PARTITION BY {ITEM_ID} ORDER BY {EVENT_TIMESTAMP} DESC, {CREATED_TIMESTAMP} DESC) = 1
        ORDER BY {ITEM_ID}
    """
    with duckdb.connect() as connection:
        found: pa.Table = connection.execute(query, [[str(file) for file in files], before]).to_arrow_table()
    if not found.num_rows:
        raise DataError(f"{directory}: no item is stamped before {before}; materialise {view} from an earlier start")
    vectors = found.column(EMBEDDING).combine_chunks()
    matrix = vectors.flatten().to_numpy(zero_copy_only=False).reshape(len(vectors), -1).astype(np.float32)
    manifest = read_manifest(files[0])
    return ItemVectors(tuple(found.column(ITEM_ID).to_pylist()), matrix, manifest["encoder_fingerprint"])
