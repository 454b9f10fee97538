"""Vectors of views that recsys_llm doesn't compute: none goes online that is not finite, or of another length."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
from feast import FeatureView

from recsys_llm.errors import RowError
from recsys_llm.producers.arrays import first_not_finite, first_of_other_length
from recsys_llm.schema import EMBEDDING


class CopiedVectors:
    """The vectors of a view: fields that say ``vector_index=True``, and :data:`recsys_llm.schema.EMBEDDING`.

    Other lists of floats may hold NaN and differ in length, as they may with Feast's own engine.
    """

    def __init__(self, view: FeatureView, join_keys: Sequence[str]) -> None:
        self._view = view
        self._keys = list(join_keys)
        fields = [field for field in view.features if field.vector_index or field.name == EMBEDDING]
        self._lengths: dict[str, int | None] = {field.name: field.vector_length or None for field in fields}
        """None until the first vector is seen, where none is declared."""

    def check(self, batch: pa.RecordBatch) -> None:
        """Refuse rows with a vector that would break what reads it.

        Raises
        ------
        RowError
            A vector holds NaN or an infinity, or has not the declared length, else that of the first one; the message
            names the row.
        """
        for name in self._lengths:
            column = batch.column(name)
            if _is_float_list(column.type):
                self._check(batch, name, column)

    def _check(self, batch: pa.RecordBatch, name: str, column: pa.Array) -> None:
        if (row := first_not_finite(column)) is not None:
            self._refuse(batch, row, f"{name} is not finite")
        known = pc.list_value_length(column).drop_null()
        if not len(known):
            return
        expected = self._lengths[name] or known[0].as_py()
        self._lengths[name] = expected
        if (wrong := first_of_other_length(column, expected)) is not None:
            self._refuse(batch, wrong[0], f"{name} has length {wrong[1]}, expected {expected}")

    def _refuse(self, batch: pa.RecordBatch, row: int, problem: str) -> None:
        stamp = self._view.batch_source.timestamp_field
        key = ", ".join(f"{column} {batch.column(column)[row].as_py()!r}" for column in self._keys)
        raise RowError(
            f"view {self._view.name}: {problem} in the row of {key} at {batch.column(stamp)[row].as_py()}; correct the "
            "source and materialise again; rows before it may be online already"
        )


def _is_float_list(kind: pa.DataType) -> bool:
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return bool(is_list and pa.types.is_floating(kind.value_type))
