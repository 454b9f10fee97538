"""The parquet parts behind a view: vectors by row id, their length, and the fingerprint of what computed them."""

from __future__ import annotations

import glob
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from recsys_llm.errors import FingerprintError, PartError, RetrievalError
from recsys_llm.retrieval.columns import Column, Kind, combined, empty, from_arrow, with_missing
from recsys_llm.retrieval.service import Feature, Service, View, known_dimensions, unmeasured
from recsys_llm.schema import BRIDGES_TAG, CREATED_TIMESTAMP, ROW_ID, TAG, VECTOR_TAG
from recsys_llm.storage import VectorStorage

_Asked = ParamSpec("_Asked")
_Found = TypeVar("_Found")

METADATA_KEY = TAG.encode()
SCAN_ROWS = 8192
"""Rows decoded at a time: 8,192 x 384 floats are 12 MB."""


class Provenance(NamedTuple):
    """What computed a view's vectors, as its parts say it; None where they don't."""

    fingerprint: str | None = None
    encoder: str | None = None
    bridges: str | None = None
    """Of a view whose vectors were mapped into an older model's space: the fingerprint that the older view has."""
    bridged_encoder: str | None = None
    sequence_model: str | None = None


def fingerprints_of(made: Mapping[str, Provenance]) -> dict[str, str | None]:
    """Return the fingerprint of the model behind each view; None where its parts don't tell."""
    return {view: found.fingerprint for view, found in made.items()}


def bridges_of(made: Mapping[str, Provenance]) -> dict[str, str]:
    """Return the fingerprint that each bridged view stands in for."""
    return {view: found.bridges for view, found in made.items() if found.bridges is not None}


def files(view: View) -> list[Path]:
    """Return the part files of a view, sorted; none where they are not on this machine."""
    if view.parts is None:
        return []
    path = Path(view.parts)
    if path.is_dir():
        return sorted(path.rglob("*.parquet"))
    return sorted(Path(found) for found in glob.glob(view.parts))


def of_present_parts(read: Callable[_Asked, _Found]) -> Callable[_Asked, _Found]:
    """Let a function read once more where parts were exchanged (`compact`, `forget`) after it had listed them.

    Raises
    ------
    RetrievalError
        They were exchanged a second time.
    """

    @wraps(read)
    def of_present(*arguments: _Asked.args, **options: _Asked.kwargs) -> _Found:
        try:
            return read(*arguments, **options)
        except FileNotFoundError:
            pass  # what holds its rows now is listed below
        try:
            return read(*arguments, **options)
        except FileNotFoundError as error:
            raise RetrievalError(f"parts were exchanged while they were read, twice ({error}); ask again") from None

    return of_present


@of_present_parts
def measured(service: Service) -> Service:
    """Fill in lengths of vectors from the parts, where there are any."""
    lengths = {feature.column: dimension(view, feature) for view, feature in unmeasured(service)}
    found = {column: length for column, length in lengths.items() if length is not None}
    return known_dimensions(service, found) if found else service


def dimension(view: View, feature: Feature) -> int | None:
    """Return the length of a vector feature's first stored value; None where there is none."""
    for file in files(view):
        with _opened(file) as parquet:
            if feature.name not in parquet.schema_arrow.names:
                continue
            for batch in parquet.iter_batches(batch_size=64, columns=[feature.name]):
                lengths = pc.drop_null(batch.column(0).value_lengths())
                if len(lengths):
                    return int(lengths[0].as_py())
    return None


@contextmanager
def _opened(file: Path) -> Iterator[pq.ParquetFile]:
    """Open a part for what a lookup wants to know of it: its checksum takes longer than that, its pages' don't."""
    try:
        with pq.ParquetFile(file, page_checksum_verification=True) as parquet:
            yield parquet
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowInvalid, ValueError) as error:
        raise PartError(f"{file}: can't be read as a part ({error}); run `recsys-llm doctor`") from None


@of_present_parts
def provenance(service: Service) -> dict[str, Provenance]:
    """Return what computed each view, from the metadata of its parts.

    A view that is bridged to an older encoder counts as one of that encoder: its vectors were mapped into its space.

    Raises
    ------
    FingerprintError
        Parts of one view carry two fingerprints, or vectors in another form than the view's tag says; or two views of
        the service hold vectors of two text encoders, or of two sequence models.
    PartError
        A part can't be read.
    """
    found = {view.name: _of_view(view) for view in service.views}
    for view in service.views:
        _check_storage(view)
    bridged = {made.encoder: made.bridged_encoder for made in found.values() if made.bridged_encoder}
    encoders: dict[str, str] = {}  # encoder fingerprint -> view
    for name, made in found.items():
        encoder = bridged.get(made.encoder, made.encoder)
        if encoder is not None:
            encoders.setdefault(encoder, name)
    models = {made.sequence_model: name for name, made in found.items() if made.sequence_model is not None}
    _check_one(service.name, "text encoder", encoders)
    _check_one(service.name, "sequence model", models)
    return found


def _check_one(service: str, kind: str, views: dict[str, str]) -> None:
    """Refuse two models, each with a view of it."""
    if len(views) > 1:
        (one, one_view), (other, other_view) = list(views.items())[:2]
        raise FingerprintError(
            f"service {service}: vectors of {one_view} come from {kind} {one}, those of {other_view} from {other}; "
            f"products of the two mean nothing. Compute both with one {kind}, as views of a new version, and name "
            "those in the service"
        )


def _of_view(view: View) -> Provenance:
    seen: dict[Provenance, Path] = {}
    for file in files(view):
        seen.setdefault(_manifest(str(file), file.stat().st_mtime_ns), file)
    written = {key: file for key, file in seen.items() if key != Provenance()}
    if len(written) > 1:
        (one, first), (other, second) = list(written.items())[:2]
        raise FingerprintError(
            f"view {view.name}: its parts were computed by two models, {one[0]} ({first}) and {other[0]} "
            f"({second}); move the parts of one away, and give the new model a view of a new version"
        )
    return next(iter(written), Provenance(bridges=view.definition.tags.get(BRIDGES_TAG)))


def _check_storage(view: View) -> None:
    """Refuse a tag that was changed after the view was written: bytes of the right length would be other numbers."""
    stored = next((feature.storage for feature in view.features if feature.storage is not None), None)
    for file in files(view) if stored is not None else []:
        written = _metadata(str(file), file.stat().st_mtime_ns).get("vector")
        made = stored if written is None else VectorStorage.of(view.name, {VECTOR_TAG: written})
        if made != stored:
            raise FingerprintError(
                f"view {view.name}: its tag {VECTOR_TAG!r} says {stored}, its parts hold {made} ({file}); restore the "
                "tag and run `feast apply`"
            )


def _manifest(file: str, modified: int) -> Provenance:
    """Return what one part says of itself."""
    names = ("fingerprint", "encoder_fingerprint", "bridges", "bridged_encoder", "sequence_fingerprint")
    return Provenance(*(_metadata(file, modified).get(name) for name in names))


@lru_cache(maxsize=4096)
def _metadata(file: str, modified: int) -> dict[str, Any]:
    """Return the manifest of a part. ``modified`` is there to read an altered file anew."""
    with _opened(Path(file)) as parquet:
        metadata = parquet.metadata.metadata or {}
        return dict(json.loads(metadata.get(METADATA_KEY, b"{}")))


def gather(view: View, row_ids: npt.NDArray[np.int64]) -> dict[str, Column]:
    """Read vectors and lists of stored rows, each row once.

    Parameters
    ----------
    view
        With parts on this machine.
    row_ids : int64 (m,)
        Distinct, ascending.

    Returns
    -------
    dict
        Full feature name to a column of m + 1 rows: those of ``row_ids``, and a missing one at the end.

    Raises
    ------
    RetrievalError
        A row is not in the parts, or two different rows have one id.
    StoreError
        Vectors of a feature differ in length.
    """
    wanted = [feature for feature in view.features if feature.kind not in (Kind.SCALAR, Kind.STRING)]
    if not len(row_ids):
        return {feature.column: empty(feature.kind, 1, feature.dimension or 0) for feature in wanted}
    counts = np.zeros(len(row_ids), dtype=np.int64)
    places: list[npt.NDArray[np.int64]] = []
    chunks: dict[str, list[Any]] = {feature.column: [] for feature in wanted}
    vectors: dict[str, npt.NDArray[np.float32]] = {}
    for batch in _scan(view, [ROW_ID, *(feature.name for feature in wanted)]):
        stored = batch.column(ROW_ID).to_numpy(zero_copy_only=False)
        at = np.minimum(np.searchsorted(row_ids, stored), len(row_ids) - 1)
        hits = np.flatnonzero(row_ids[at] == stored)
        if not len(hits):
            continue
        at = at[hits]
        few = len(hits) < len(stored) // 2  # decoding all is faster than picking most
        np.add.at(counts, at, 1)
        places.append(at)
        for feature in wanted:
            rows = combined(batch.column(feature.name))
            if feature.kind is not Kind.VECTOR or few:
                rows = rows.take(pa.array(hits))
            if feature.kind is not Kind.VECTOR:
                chunks[feature.column].append(from_arrow(rows, feature.kind, name=feature.column))
                continue
            length = vectors[feature.column].shape[1] if feature.column in vectors else feature.dimension
            values = from_arrow(rows, feature.kind, name=feature.column, dimension=length, storage=feature.storage)
            if feature.column not in vectors and values.shape[1]:
                vectors[feature.column] = empty(feature.kind, len(row_ids) + 1, values.shape[1])
            if feature.column in vectors:
                vectors[feature.column][at] = values if len(hits) == len(values) else values[hits]
    _check_counts(view, row_ids, counts)
    first = np.zeros(len(row_ids), dtype=np.int64)
    found = np.concatenate(places)
    first[found[::-1]] = np.arange(len(found))[::-1]
    gathered: dict[str, Column] = {}
    for feature in wanted:
        if feature.kind is Kind.VECTOR:
            gathered[feature.column] = vectors.get(feature.column, empty(feature.kind, len(row_ids) + 1))
        else:
            gathered[feature.column] = with_missing(pa.concat_arrays(chunks[feature.column]).take(pa.array(first)))
    return gathered


def _scan(view: View, columns: list[str]) -> Iterator[Any]:
    dataset = ds.dataset([str(file) for file in files(view)], format="parquet")
    yield from dataset.to_batches(columns=columns, batch_size=SCAN_ROWS, batch_readahead=2, fragment_readahead=1)


def _check_counts(view: View, row_ids: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> None:
    """Refuse rows that are not there, and ids that stand for more than one row."""
    missing = row_ids[counts == 0]
    if len(missing):
        raise RetrievalError(
            f"view {view.name}: row {ROW_ID}={int(missing[0])} was joined but is not in the parts at {view.parts} "
            f"({len(missing)} such rows); they changed while they were read: ask again"
        )
    repeated = row_ids[counts > 1]
    if not len(repeated):
        return
    # A killed run may leave a row twice; that is one row. Two rows under one id are not.
    dataset = ds.dataset([str(file) for file in files(view)], format="parquet")
    columns = [name for name in dataset.schema.names if name != CREATED_TIMESTAMP]
    table = dataset.to_table(columns=columns, filter=pc.field(ROW_ID).isin(pa.array(repeated)))
    rows: dict[int, str] = {}
    for row in table.to_pylist():
        text = repr(row)
        if rows.setdefault(row[ROW_ID], text) != text:
            raise RetrievalError(
                f"view {view.name}: two different rows share {ROW_ID}={row[ROW_ID]}, one of them of "
                f"{view.join_key}={row[view.join_key]!r}; a row id must name one stored row: recompute the view"
            )
