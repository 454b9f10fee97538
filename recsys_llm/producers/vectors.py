"""Reading back an item embedding view: the text vectors that other models start from."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from recsys_llm.errors import DataError
from recsys_llm.part_names import check_parts
from recsys_llm.producers.parts import part_files, read_manifest
from recsys_llm.schema import CREATED_TIMESTAMP, EMBEDDING, EVENT_TIMESTAMP, ITEM_ID, VECTOR_TAG
from recsys_llm.seqgan import ItemVectors
from recsys_llm.sources.connection import open_duckdb
from recsys_llm.storage import VectorStorage


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
    PartError
        A part was altered.
    """
    files = part_files(directory)
    if not files:
        raise DataError(f"{directory}: no parts; run `feast materialize START END -v {view}` first")
    check_parts(files, view)
    query = f"""
        SELECT {ITEM_ID}, {EMBEDDING} FROM read_parquet(?) WHERE {EVENT_TIMESTAMP} < ?
        QUALIFY row_number() OVER (PARTITION BY {ITEM_ID} ORDER BY {EVENT_TIMESTAMP} DESC, {CREATED_TIMESTAMP} DESC) = 1
        ORDER BY {ITEM_ID}
    """
    with open_duckdb() as connection:
        found: pa.Table = connection.execute(query, [[str(file) for file in files], before]).to_arrow_table()
    if not found.num_rows:
        raise DataError(f"{directory}: no item is stamped before {before}; materialise {view} from an earlier start")
    manifest = read_manifest(files[0])
    matrix = stored_vectors(found.column(EMBEDDING).combine_chunks(), manifest)
    return ItemVectors(tuple(found.column(ITEM_ID).to_pylist()), matrix, manifest["encoder_fingerprint"])


def stored_vectors(column: pa.Array, manifest: Mapping[str, str]) -> npt.NDArray[np.float32]:
    """Return the vectors of a part's column without nulls, (n, dim).

    Parameters
    ----------
    manifest
        Of the part: it says how vectors are stored that are no lists of floats.
    """
    if not pa.types.is_binary(column.type):
        values = column.flatten().to_numpy(zero_copy_only=False)
        return np.asarray(values.reshape(len(column), -1), np.float32)
    stored = VectorStorage.of(manifest["view"], {VECTOR_TAG: manifest["vector"]})
    assert stored is not None  # the tag is there
    codes = np.frombuffer(b"".join(column.to_pylist()), np.uint8)
    return stored.decode(codes.reshape(len(column), stored.width))
