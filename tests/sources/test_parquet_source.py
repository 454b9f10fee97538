"""What is particular to parquet: paths, several files, types, damaged content, sorting out of core."""

from __future__ import annotations

import tempfile
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys_llm.errors import DataError, RowError, SchemaError
from recsys_llm.sources import ParquetSource

T = datetime(2024, 5, 1, 12, tzinfo=UTC)
STAMP = pa.timestamp("us", "UTC")


def write(file: Path, ids: list[str], **columns: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"id": ids, "t": pa.array([T] * len(ids), STAMP), **columns}), file)
    return file


def read_ids(path: Path | str) -> list[str]:
    source = ParquetSource(path, timestamp="t", name="events")
    return [value for batch in source.batches(["id"], order_by=["id"]) for value in batch.column("id").to_pylist()]


def test_a_directory_is_read_to_its_depth_without_hidden_files(tmp_path: Path) -> None:
    write(tmp_path / "b.parquet", ["b"])
    write(tmp_path / "deep" / "a.parquet", ["a"])
    for hidden in (".c.parquet", "_d.parquet", "_temporary/e.parquet", "f.parquet.tmp"):
        write(tmp_path / hidden, ["hidden"])
    assert read_ids(tmp_path) == ["a", "b"]


def test_names_of_folders_are_no_columns(tmp_path: Path) -> None:
    write(tmp_path / "id=folder" / "region=eu" / "a.parquet", ["a"])
    source = ParquetSource(tmp_path, timestamp="t", name="events")
    assert source.schema().names == ["id", "t"]
    assert read_ids(tmp_path) == ["a"]


def test_a_glob_is_expanded(tmp_path: Path) -> None:
    for name in ("x1", "x2", "y1"):
        write(tmp_path / f"{name}.parquet", [name])
    assert read_ids(f"{tmp_path}/x*.parquet") == ["x1", "x2"]


@pytest.mark.parametrize(
    "name", ["a'b", 'a"b', "a b", "a[1]", "a*", "a?", "{a,b}", "$HOME", "a;b", "é😀", "a%20b", "a\\b"]
)
def test_a_hostile_path_is_only_a_path(tmp_path: Path, name: str) -> None:
    write(tmp_path / name / f"{name}.parquet", ["wanted"])
    write(tmp_path / "a1" / "a1.parquet", ["another"])
    assert read_ids(tmp_path / name / f"{name}.parquet") == ["wanted"]
    assert read_ids(tmp_path / name) == ["wanted"]


def test_nothing_found_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "none.parquet", tmp_path / "*.parquet"):
        with pytest.raises(DataError, match="no parquet file found"):
            read_ids(path)


def test_a_file_that_is_no_parquet_is_named(tmp_path: Path) -> None:
    (tmp_path / "events.parquet").write_text("user,item\n1,2\n")
    with pytest.raises(DataError, match=r"events\.parquet can't be read as parquet"):
        read_ids(tmp_path / "events.parquet")


def test_damaged_pages_are_a_data_error(tmp_path: Path) -> None:
    file = write(tmp_path / "events.parquet", [f"id {number}" for number in range(5000)])
    content = bytearray(file.read_bytes())
    content[100:2000] = b"\xff" * 1900
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"events \(.*reading failed"):
        read_ids(file)


def test_files_of_different_schemas_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", ["a"], n=pa.array([1]))
    write(tmp_path / "b.parquet", ["b"], n=pa.array([1.5]))
    with pytest.raises(SchemaError, match=r"b\.parquet and a\.parquet have different columns or types: n;"):
        read_ids(tmp_path)


def test_columns_that_differ_in_case_only_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", ["a"], ID=pa.array(["b"]))
    with pytest.raises(SchemaError, match="'id' but for case"):
        read_ids(tmp_path)


@pytest.mark.parametrize(
    ("column", "found"),
    [
        (pa.array([datetime(2024, 5, 1)], pa.timestamp("us")), r"timestamp\[us\] without one"),
        (pa.array([0], pa.timestamp("ns")), r"timestamp\[ns\] without one"),
        (pa.array([date(2024, 5, 1)]), "date32"),
        (pa.array(["2024-05-01 00:00:00+00:00"]), "string"),
        (pa.array([1_714_521_600]), "int64"),
    ],
)
def test_a_column_that_is_no_instant_is_refused_with_a_remedy(tmp_path: Path, column: Any, found: str) -> None:
    pq.write_table(pa.table({"id": ["a"], "t": column}), tmp_path / "a.parquet")
    with pytest.raises(SchemaError, match=rf"column 't'.*{found}.*(tz_localize|to_datetime)"):
        read_ids(tmp_path / "a.parquet")


@pytest.mark.parametrize(("unit", "per_second"), [("s", 1), ("ms", 10**3), ("us", 10**6), ("ns", 10**9)])
@pytest.mark.parametrize("zone", ["UTC", "Europe/London", "+05:30"])
def test_any_unit_and_zone_is_the_same_instant(tmp_path: Path, unit: str, per_second: int, zone: str) -> None:
    stamps = pa.array([int(T.timestamp()) * per_second], pa.timestamp(unit, zone))
    pq.write_table(pa.table({"t": stamps}), tmp_path / "a.parquet")
    (batch,) = ParquetSource(tmp_path / "a.parquet", timestamp="t", name="events").batches()
    assert batch.column("t").type == STAMP and batch.column("t").to_pylist() == [T]


def test_nanoseconds_that_are_whole_microseconds_pass_and_others_are_named(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    for stamps, fits in (([1000, None, -5000], True), ([1000, None, 1001], False), ([-1, 1000, 0], False)):
        pq.write_table(pa.table({"t": pa.array(stamps, pa.timestamp("ns", "UTC"))}), file)
        source = ParquetSource(file, timestamp="t", name="events")
        if fits:
            assert sum(batch.num_rows for batch in source.batches()) == 3
            continue
        row = next(index for index, stamp in enumerate(stamps) if stamp is not None and stamp % 1000)
        with pytest.raises(RowError, match=rf"a\.parquet row {row}, column 't'.*found nanoseconds"):
            source.batches()


@pytest.mark.parametrize("damaged", [b"\xed\xa0\x80", b"\xff", b"\xc3"], ids=["lone surrogate", "latin1", "cut"])
def test_text_that_is_no_utf8_is_named(tmp_path: Path, damaged: bytes) -> None:
    raw = pa.array([b"good", None, damaged])
    text = pa.Array.from_buffers(pa.string(), 3, raw.buffers(), raw.null_count)
    write(tmp_path / "a.parquet", ["1", "2", "3"], text=text)
    source = ParquetSource(tmp_path / "a.parquet", timestamp="t", name="events")
    with pytest.raises(RowError, match=r"a\.parquet row 2, column 'text': the text is not valid UTF-8"):
        list(source.batches())
    assert sum(batch.num_rows for batch in source.batches(["id"])) == 3, "an unread column does no harm"


def test_encoded_and_large_strings_are_strings(tmp_path: Path) -> None:
    columns = {"d": pa.array(["x", "y"]).dictionary_encode(), "l": pa.array(["x", "y"], pa.large_string())}
    write(tmp_path / "a.parquet", ["1", "2"], **columns)
    (batch,) = ParquetSource(tmp_path / "a.parquet", timestamp="t", name="events").batches(order_by=["d"])
    assert batch.column("d").to_pylist() == batch.column("l").to_pylist() == ["x", "y"]


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """File of 80 MB of distinct texts in no order."""
    rows = 400_000
    ids = pa.array([f"{(number * 7919) % rows:0200d}" for number in range(rows)])
    return write_table(pa.table({"id": ids, "t": pa.array([T] * rows, STAMP)}), tmp_path_factory.mktemp("wide"))


def write_table(table: Any, folder: Path) -> Path:
    pq.write_table(table, folder / "a.parquet", compression="zstd")
    return folder / "a.parquet"


@pytest.mark.parametrize(
    "limits", [(("200MB", 1),), (("20MB", 2), ("200MB", 1))], ids=["at once", "after running out of memory"]
)
def test_sorting_spills_to_a_private_folder_that_is_removed(
    wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limits: tuple[tuple[str, int], ...]
) -> None:
    monkeypatch.setattr("recsys_llm.sources.parquet.MEMORY_LIMITS", limits)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    spilled, last, seen = 0, "", 0
    for batch in ParquetSource(wide, timestamp="t", name="events").batches(["id"], order_by=["id"]):
        spilled = max(spilled, sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file()))
        first, seen = batch.column("id")[0].as_py(), seen + batch.num_rows
        assert first > last
        last = batch.column("id")[-1].as_py()
    assert seen == 400_000 and spilled > 2**20
    assert list(tmp_path.iterdir()) == []


def test_a_sort_that_never_fits_is_a_data_error(wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recsys_llm.sources.parquet.MEMORY_LIMITS", (("20MB", 2), ("20MB", 1)))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(DataError, match="sorting needs more than 20MB"):
        list(ParquetSource(wide, timestamp="t", name="events").batches(["id"], order_by=["id"]))
    assert list(tmp_path.iterdir()) == []


def test_the_spill_folder_goes_when_reading_stops_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.parquet", [str(number) for number in range(5000)])
    (tmp_path / "spill").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "spill"))
    reading = ParquetSource(tmp_path / "a.parquet", timestamp="t", name="events").batches(batch_rows=10)
    next(reading)
    assert len(list((tmp_path / "spill").iterdir())) == 1
    reading.close()  # type: ignore[attr-defined]
    assert list((tmp_path / "spill").iterdir()) == []
