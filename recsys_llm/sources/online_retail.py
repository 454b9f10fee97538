"""Online Retail: a year of orders of a British gift shop, 2010-2011.

Daqing Chen (2015), UCI Machine Learning Repository, doi:10.24432/C5BW33, CC BY 4.0.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any, cast

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from recsys_llm.errors import DataError, DownloadError
from recsys_llm.files import replaced_directory
from recsys_llm.sources.archive import opened_member
from recsys_llm.sources.download import exclusive, fetch_file
from recsys_llm.timestamps import TIMESTAMP

URL = "https://archive.ics.uci.edu/static/public/352/online+retail.zip"
NAME = "online_retail"
SHOP_TIME_ZONE = "Europe/London"
"""The workbook holds local times without a zone."""
DESCRIPTIONS = 4
"""Most variants of a product's description that go into its text."""

_COLUMNS = ("InvoiceNo", "StockCode", "Description", "Quantity", "InvoiceDate", "UnitPrice", "CustomerID", "Country")
_PRODUCT = r"\d{5}[A-Za-z]{0,2}"
"""Stock codes of products; the others are postage, fees and corrections."""


def fetch_online_retail(cache: Path, *, url: str = URL, sha256: str | None = None) -> Path:
    """Download Online Retail, unless it is in ``cache``, and turn it into a data folder.

    Kept are lines with a customer and a product; those of cancelled orders have the event ``cancel``. A product's title
    is its most frequent description, its category the last word of it (a stand-in); its time and price are those of the
    first sale.

    Parameters
    ----------
    cache
        Directory, made if missing. The zip and the folder are kept there.
    url
        Where the zip is.
    sha256
        Expected checksum of the zip. Its owner publishes none; without it, only the zip's own checksums are checked.

    Returns
    -------
    Path
        Folder with items.parquet and interactions.parquet.

    Raises
    ------
    DownloadError
        The file can't be fetched, its checksum differs, or it has another form.
    DataError
        The package openpyxl is not installed.
    """
    folder = cache / NAME
    with exclusive(cache):
        if folder.is_dir():
            return folder
        _openpyxl()  # before the download, not after it
        archive = fetch_file(url, cache / "online_retail.zip", sha256=sha256)
        with opened_member(archive, "Online Retail.xlsx") as member:
            lines = order_lines(_rows(member, archive), name=archive.name)
        with replaced_directory(folder) as temporary:
            pq.write_table(_items(lines), temporary / "items.parquet")
            pq.write_table(_interactions(lines), temporary / "interactions.parquet")
            (temporary / "PROVENANCE.md").write_text(
                f"Online Retail (Daqing Chen, 2015, doi:10.24432/C5BW33), CC BY 4.0, from {url}.\n", encoding="utf-8"
            )
    return folder


def order_lines(rows: Iterable[tuple[Any, ...]], *, name: str) -> pd.DataFrame:
    """Return the order lines of customers, in time order, from the rows of the workbook.

    Parameters
    ----------
    rows
        The header row, then one row per line.
    name
        For messages.

    Returns
    -------
    pd.DataFrame
        Columns ``user_id``, ``item_id``, ``event``, ``quantity``, ``unit_price``, ``country``, ``order_id``,
        ``description``, ``event_timestamp`` (UTC).

    Raises
    ------
    DownloadError
        A column is missing.
    """
    iterator = iter(rows)
    header = [str(cell) for cell in next(iterator, ())]
    missing = [column for column in _COLUMNS if column not in header]
    if missing:
        raise DownloadError(f"{name}: expected the columns {', '.join(_COLUMNS)}; missing: {', '.join(missing)}")
    raw = pd.DataFrame(list(iterator), columns=header, dtype=object)
    codes = raw["StockCode"].astype(str).str.strip()
    kept = raw["CustomerID"].notna() & codes.str.fullmatch(_PRODUCT) & raw["InvoiceDate"].notna()
    raw, codes = raw[kept], codes[kept].str.upper()
    orders = raw["InvoiceNo"].astype(str)
    local = pd.to_datetime(raw["InvoiceDate"]).dt.tz_localize(
        SHOP_TIME_ZONE, ambiguous=False, nonexistent="shift_forward"
    )
    lines = pd.DataFrame(
        {
            "user_id": raw["CustomerID"].astype(float).astype("int64").astype(str),
            "item_id": codes,
            "event": orders.str.startswith("C").map({True: "cancel", False: "purchase"}),
            "quantity": raw["Quantity"].astype("int32"),
            "unit_price": raw["UnitPrice"].astype("float32"),
            "country": raw["Country"].astype(str),
            "order_id": orders,
            "description": raw["Description"].fillna("").astype(str).str.strip(),
            "event_timestamp": local.dt.tz_convert("UTC").dt.as_unit("us"),
        }
    )
    return lines.sort_values("event_timestamp", kind="stable")


def _openpyxl() -> Any:
    try:
        return importlib.import_module("openpyxl")
    except ModuleNotFoundError:
        raise DataError(
            "Online Retail is an Excel workbook, and reading it needs openpyxl: pip install 'recsys-llm[retail]'"
        ) from None


def _rows(member: IO[bytes], archive: Path) -> Iterable[tuple[Any, ...]]:
    try:
        workbook = _openpyxl().load_workbook(member, read_only=True, data_only=True)
    except (KeyError, ValueError) as error:
        raise DownloadError(
            f"{archive.name}: not an Excel workbook: {error}; delete {archive} and try again"
        ) from error
    return cast(Iterable[tuple[Any, ...]], workbook.worksheets[0].iter_rows(values_only=True))


def _items(lines: pd.DataFrame) -> Any:
    sold = lines[lines["event"] == "purchase"].groupby("item_id").first()  # in time order: the first sale
    described = lines[lines["description"] != ""]
    counts = described.groupby(["item_id", "description"]).size().rename("lines").reset_index()
    counts = counts.sort_values(["item_id", "lines", "description"], ascending=[True, False, True])
    variants = counts.groupby("item_id")["description"].agg(lambda texts: list(texts)[:DESCRIPTIONS])
    texts = [variants.get(item, []) for item in sold.index]
    titles = [found[0].capitalize() if found else "" for found in texts]
    return pa.table(
        {
            "item_id": pa.array(sold.index, pa.string()),
            "title": pa.array(titles, pa.string()),
            "text": pa.array([" / ".join(sorted(found)) for found in texts], pa.string()),
            "category": pa.array([title.split()[-1].lower() if title else "" for title in titles], pa.string()),
            "event_timestamp": pa.array(sold["event_timestamp"], TIMESTAMP),
            "unit_price": pa.array(sold["unit_price"].astype(float), pa.float64()),
        }
    )


def _interactions(lines: pd.DataFrame) -> Any:
    return pa.table(
        {
            "user_id": pa.array(lines["user_id"], pa.string()),
            "item_id": pa.array(lines["item_id"], pa.string()),
            "rating": pa.nulls(len(lines), pa.float32()),
            "event": pa.array(lines["event"], pa.string()),
            "quantity": pa.array(lines["quantity"], pa.int32()),
            "unit_price": pa.array(lines["unit_price"], pa.float32()),
            "country": pa.array(lines["country"], pa.string()),
            "order_id": pa.array(lines["order_id"], pa.string()),
            "event_timestamp": pa.array(lines["event_timestamp"], TIMESTAMP),
        }
    )
