"""A training set as Feast's saved datasets take it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from feast.errors import SavedDatasetLocationAlreadyExists
from feast.infra.offline_stores.file_source import SavedDatasetFileStorage
from feast.infra.offline_stores.offline_store import RetrievalJob, RetrievalMetadata

from recsys_llm.errors import RetrievalError
from recsys_llm.files import replaced_file
from recsys_llm.schema import EVENT_TIMESTAMP, ITEM_ID, USER_ID

if TYPE_CHECKING:
    from recsys_llm.retrieval.training import TrainingSet


class TrainingJob(RetrievalJob):  # type: ignore[misc]  # Feast ships no types
    """Gives a training set's own rows, without joining anything again."""

    def __init__(self, training: TrainingSet) -> None:
        super().__init__()
        self._training = training

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        return self._training.to_pandas()

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        return self._training.to_arrow()

    @property
    def full_feature_names(self) -> bool:
        """Whether columns are called ``view__feature``."""
        return True

    @property
    def on_demand_feature_views(self) -> list[Any]:
        """None of them."""
        return []

    @property
    def metadata(self) -> RetrievalMetadata:
        """What Feast writes into its registry."""
        times = self._training.examples[EVENT_TIMESTAMP]
        if not len(times):
            raise RetrievalError("saved dataset: expected at least one example, found none; Feast reads by their times")
        first, last = (time.to_pydatetime() for time in (times.min(), times.max()))
        return RetrievalMetadata(list(self._training.references), [USER_ID, ITEM_ID], first, last)

    def persist(self, storage: Any, allow_overwrite: bool = False, timeout: int | None = None) -> None:
        """Write the rows to a parquet file, whole or not at all.

        Raises
        ------
        RetrievalError
            The storage is no local file.
        SavedDatasetLocationAlreadyExists
            The file is there already.
        """
        if not isinstance(storage, SavedDatasetFileStorage) or "://" in storage.file_options.uri:
            raise RetrievalError(
                f"saved dataset: expected a SavedDatasetFileStorage with a local path, found {type(storage).__name__}; "
                "write to_arrow() where it should go"
            )
        path = Path(storage.file_options.uri)
        if not path.is_absolute():
            raise RetrievalError(f"saved dataset: expected an absolute path, found {str(path)!r}; resolve it first")
        if path.exists() and not allow_overwrite:
            raise SavedDatasetLocationAlreadyExists(location=str(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        with replaced_file(path) as temporary:
            pq.write_table(self._training.to_arrow(), temporary)
