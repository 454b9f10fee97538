"""Rows of a view as an online store keeps them: entity keys, times and values as bytes."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
from feast import FeatureView, RepoConfig, ValueType
from feast.infra.key_encoding_utils import serialize_entity_key, serialize_entity_key_prefix
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import ValueType as KeyType
from feast.type_map import python_values_to_proto_values

from recsys_llm.engine.values import stored_texts, stored_values
from recsys_llm.errors import RowError
from recsys_llm.stores.compare_and_set import Written

__all__ = ["JoinKeys", "OnlineWriter", "Rows", "Written", "micros_of"]

JoinKeys = Mapping[str, Any]
"""Column of each entity key to its ``feast.ValueType``."""


@dataclass(frozen=True)
class Rows:
    """Rows of one view; the bytes are made when they are asked for."""

    view: FeatureView
    batch: pa.RecordBatch
    join_keys: JoinKeys
    config: RepoConfig

    def __len__(self) -> int:
        return int(self.batch.num_rows)

    @cached_property
    def keys(self) -> list[bytes]:
        """Serialised entity keys, without the project that Redis adds.

        Raises
        ------
        RowError
            A key is null.
        """
        for name in self.join_keys:
            _check_known(self.batch.column(name), self.view, name)
        return _entity_keys(self.batch, self.join_keys, self.config.entity_key_serialization_version)

    @cached_property
    def micros(self) -> npt.NDArray[np.int64]:
        """Event times, microseconds since the epoch: int64 (n,).

        Raises
        ------
        RowError
            A time is null.
        """
        name = self.view.batch_source.timestamp_field
        _check_known(self.batch.column(name), self.view, name)
        return micros_of(self.batch.column(name))

    @property
    def created(self) -> npt.NDArray[np.int64] | None:
        """Creation times like :attr:`micros`; None where the view's source has no column of them."""
        name = self.view.batch_source.created_timestamp_column
        if not name:
            return None
        _check_known(self.batch.column(name), self.view, name)
        return micros_of(self.batch.column(name))

    @cached_property
    def values(self) -> dict[str, list[bytes]]:
        """What Feast stores of each feature, by its name."""
        return {
            name: stored_values(self.batch.column(name), value_type) for name, value_type in self._value_types.items()
        }

    def texts(self, feature: str) -> Sequence[str | None]:
        """Return what Feast's SQL stores keep beside each value of a feature for people to read."""
        return stored_texts(self.batch.column(feature), self._value_types[feature], self.values[feature])

    @cached_property
    def _value_types(self) -> dict[str, Any]:
        return {feature.name: feature.dtype.to_value_type() for feature in self.view.features}


class OnlineWriter(Protocol):
    """Writes rows of one view."""

    def write(self, rows: Rows) -> Written:
        """Write rows of distinct keys, each unless the store holds a newer one of its key.

        Raises
        ------
        StoreError
            The store failed; some of the rows may be written.
        """
        ...


def _check_known(column: Any, view: FeatureView, name: str) -> None:
    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        raise RowError(f"view {view.name}, column {name!r}, row {row}: null; every stored row needs one: drop the row")


def _entity_keys(batch: pa.RecordBatch, join_keys: JoinKeys, version: int) -> list[bytes]:
    """Return what ``serialize_entity_key`` makes of each row; a single key of text needs no message for each."""
    names = list(join_keys)
    types = [batch.schema.field(name).type for name in names]
    if types == [pa.string()] and join_keys[names[0]] == ValueType.STRING:
        prefix = bytes(serialize_entity_key_prefix(names, version))
        texts: Sequence[bytes] = batch.column(names[0]).cast(pa.binary()).to_numpy(zero_copy_only=False).tolist()
        return [prefix + struct.pack("<II", KeyType.STRING, len(text)) + text for text in texts]
    columns = [
        python_values_to_proto_values(batch.column(name).to_numpy(zero_copy_only=False), kind)
        for name, kind in join_keys.items()
    ]
    values = zip(*columns, strict=True) if columns else [()] * batch.num_rows
    messages = (EntityKey(join_keys=names, entity_values=row) for row in values)
    return [serialize_entity_key(message, entity_key_serialization_version=version) for message in messages]


def micros_of(column: Any) -> npt.NDArray[np.int64]:
    """Return times as microseconds since the epoch, int64 (n,); a null is the lowest number there is."""
    if not pa.types.is_timestamp(column.type):  # dates and texts, which Feast takes too
        column = pa.array(pd.to_datetime(column.to_pandas(), utc=True))
    stamps = column.cast(pa.timestamp("us", column.type.tz), safe=False).cast(pa.int64())
    micros: npt.NDArray[np.int64] = stamps.fill_null(np.iinfo(np.int64).min).to_numpy(zero_copy_only=False)
    return micros
