"""Online Retail from a local server: the folder that it becomes, and what is refused."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from recsys_llm.errors import DataError, DownloadError
from recsys_llm.sources import fetch_online_retail
from tests.sources.http_site import Site, names_left, zip_of

# --- Online Retail

HEADER = ("InvoiceNo", "StockCode", "Description", "Quantity", "InvoiceDate", "UnitPrice", "CustomerID", "Country")
LINES = [
    (536365, "85123A", "WHITE HANGING HEART", 6, datetime(2011, 6, 1, 8, 26), 2.55, 17850.0, "United Kingdom"),
    (536365, 71053, "WHITE METAL LANTERN", 6, datetime(2011, 6, 1, 8, 26), 3.39, 17850.0, "United Kingdom"),
    ("C536366", "85123a", "WHITE HANGING HEART", -6, datetime(2011, 6, 2, 8, 26), 2.55, 17850.0, "United Kingdom"),
    (536300, "85123A", "CREAM HEART", 1, datetime(2011, 1, 1, 9, 0), 2.95, 12346.0, "France"),
    (536367, "POST", "POSTAGE", 1, datetime(2011, 6, 1, 9, 0), 18.0, 12346.0, "France"),
    (536368, "71053", "no customer", 1, datetime(2011, 6, 1, 9, 0), 3.39, None, "France"),
    (536369, "84000", None, 1, datetime(2011, 6, 1, 9, 0), 0.0, 12346.0, "France"),
]


def retail_zip(header: tuple[str, ...] = HEADER) -> bytes:
    openpyxl = pytest.importorskip("openpyxl")
    workbook = openpyxl.Workbook()
    for row in (header, *LINES):
        workbook.active.append(row)
    buffer = io.BytesIO()
    workbook.save(buffer)
    return zip_of({"Online Retail.xlsx": buffer.getvalue()})


def test_online_retail_becomes_a_data_folder(site: Site, tmp_path: Path) -> None:
    site.files["/retail.zip"], site.cuts = retail_zip(), [500]
    folder = fetch_online_retail(tmp_path, url=f"{site.url}/retail.zip")
    events = pq.read_table(folder / "interactions.parquet").to_pylist()
    found = [(row["user_id"], row["item_id"], row["event"], row["event_timestamp"]) for row in events]
    assert found == [
        ("12346", "85123A", "purchase", datetime(2011, 1, 1, 9, 0, tzinfo=UTC)),
        ("17850", "85123A", "purchase", datetime(2011, 6, 1, 7, 26, tzinfo=UTC)),  # British summer time
        ("17850", "71053", "purchase", datetime(2011, 6, 1, 7, 26, tzinfo=UTC)),
        ("12346", "84000", "purchase", datetime(2011, 6, 1, 8, 0, tzinfo=UTC)),
        ("17850", "85123A", "cancel", datetime(2011, 6, 2, 7, 26, tzinfo=UTC)),
    ]
    items = {row.pop("item_id"): row for row in pq.read_table(folder / "items.parquet").to_pylist()}
    assert list(items) == ["71053", "84000", "85123A"]
    assert items["85123A"] == {
        "title": "White hanging heart",
        "text": "CREAM HEART / WHITE HANGING HEART",
        "category": "heart",
        "event_timestamp": datetime(2011, 1, 1, 9, 0, tzinfo=UTC),
        "unit_price": pytest.approx(2.95),
    }
    assert (items["84000"]["title"], items["84000"]["text"], items["84000"]["category"]) == ("", "", "")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: retail_zip(("Invoice", *HEADER[1:])), "missing: InvoiceNo"),
        (lambda: zip_of({"Online Retail.xlsx": b"no workbook"}), "not an Excel workbook|not a whole zip file"),
        (lambda: zip_of({"other.csv": b""}), "expected one member 'Online Retail.xlsx'"),
    ],
)
def test_a_workbook_of_another_form_makes_no_folder(
    site: Site, tmp_path: Path, content: Callable[[], bytes], message: str
) -> None:
    pytest.importorskip("openpyxl")
    site.files["/retail.zip"] = content()
    with pytest.raises(DownloadError, match=message):
        fetch_online_retail(tmp_path, url=f"{site.url}/retail.zip")
    assert names_left(tmp_path) == ["online_retail.zip"]


def test_without_openpyxl_nothing_is_downloaded(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(DataError, match=r"pip install 'recsys-llm\[retail\]'"):
        fetch_online_retail(tmp_path, url=f"{site.url}/retail.zip")
    assert site.requests == []
