"""Part files: a view's computed rows on disk, read by any Feast offline store that reads parquet.

A part appears whole or not at all (temporary file, fsync, rename).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from recsys_llm.errors import FingerprintError, LedgerError, PartError
from recsys_llm.files import is_plain_name, replaced_file, sync_directory
from recsys_llm.part_names import check_part, part_name
from recsys_llm.schema import CREATED_TIMESTAMP, TAG

METADATA_KEY = TAG.encode()


class Parts:
    """The parts of one view.

    Parameters
    ----------
    directory
        ``<feature repository>/data/features/<view>``.
    view
        Name of the view.
    manifest
        Fingerprints; written into the metadata of each part.
    """

    def __init__(self, directory: Path, view: str, manifest: Mapping[str, str]) -> None:
        self.directory = directory
        self.view = view
        self.manifest = manifest

    def names(self) -> list[str]:
        """Return the file names of all parts that hold rows, sorted."""
        return [file.name for file in part_files(self.directory)]

    def in_order(self, names: Iterable[str]) -> list[str]:
        """Return part names by the time at which they were computed, after a check that they are of this model.

        Raises
        ------
        FingerprintError
            A part was computed by another model than this view's.
        PartError
            A file is no part of ours, or was altered.
        """
        return sorted(names, key=lambda name: (self.read(name, [CREATED_TIMESTAMP]).column(0)[0].as_py(), name))

    def check_dimension(self) -> None:
        """Refuse a model whose vectors have another length than those on disk.

        Raises
        ------
        FingerprintError
            The view holds vectors of another length.
        """
        for file in part_files(self.directory)[:1]:
            held, made = read_manifest(file).get("dim"), self.manifest.get("dim")
            if held is not None and made is not None and held != made:
                raise FingerprintError(
                    f"view {self.view} holds vectors of length {held} ({file.name}), the model at hand makes vectors "
                    f"of length {made}; give the model a view of a new version, or restore the old model and settings"
                )

    def write(self, table: pa.Table) -> str:
        """Write rows as one part, and return its file name."""
        return self._write(table, None)

    def ensure_readable(self, schema: pa.Schema) -> None:
        """Write an empty file with the schema where there is no part, so that history can be asked for."""
        if not any(self.directory.glob("*.parquet")):
            self._write(schema.empty_table(), "empty.parquet")

    def read(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """Read a part, or some columns of it.

        Raises
        ------
        FingerprintError
            The part was computed by another model than this view's.
        PartError
            The file is no part of ours, or was altered.
        """
        file = self._file(name)
        try:
            check_part(file, self.view)
            table = pq.read_table(file, columns=columns, page_checksum_verification=True)
        except (OSError, pa.ArrowInvalid) as error:
            raise PartError(f"{file}: can't be read as a part ({error}); move it out of the view's directory") from None
        written = _manifest_in(table.schema)
        if written.get("fingerprint") != self.manifest["fingerprint"]:
            raise FingerprintError(
                f"{file}: holds values of fingerprint {written.get('fingerprint')}, view {self.view} is computed with "
                f"{self.manifest['fingerprint']}; move the file away, or use a view of a new version"
            )
        return table

    def manifest_of(self, name: str) -> dict[str, str]:
        """Return what a part says of itself."""
        return {key: value for key, value in read_manifest(self._file(name)).items() if key != "view"}

    def rows(self, name: str) -> int:
        """Return the number of rows of a part, from its footer."""
        return int(pq.read_metadata(self._file(name)).num_rows)

    def remove(self, names: Iterable[str]) -> None:
        """Remove parts; those that are gone already are fine.

        Raises
        ------
        LedgerError
            A name is none of a file in the view's directory.
        """
        for name in names:
            self._file(name).unlink(missing_ok=True)
        sync_directory(self.directory)

    def sweep(self) -> None:
        """Remove what killed runs left unfinished; the caller holds the view's lock."""
        for file in self.directory.parent.glob(f".{self.view}.*.tmp"):
            file.unlink()

    def _file(self, name: str) -> Path:
        """Return where a part lies; the name may come from the ledger, which others may write to."""
        if not is_plain_name(name):
            raise LedgerError(
                f"view {self.view}: expected the name of a part, found {name!r} in the ledger; nothing was read or "
                "removed. Find out who changed the ledger, and delete that row"
            )
        return self.directory / name

    def _write(self, table: pa.Table, name: str | None) -> str:
        """Write a file under a name, or under that of its own SHA-256, and return the name."""
        self.directory.mkdir(parents=True, exist_ok=True)
        metadata = {METADATA_KEY: json.dumps({"view": self.view, **self.manifest}, sort_keys=True)}
        # Not below the view's directory: DuckDB reads every parquet file it finds there.
        temporary = self.directory.parent / f".{self.view}.{os.getpid()}.tmp"
        try:
            rows = table.replace_schema_metadata(metadata)
            pq.write_table(rows, temporary, compression="zstd", write_page_checksum=True)
            name = name or part_name(temporary)
            with replaced_file(self.directory / name, temporary=temporary):
                pass  # it is written already: its name had to be known first
        finally:
            temporary.unlink(missing_ok=True)
        return name


def part_files(directory: Path) -> list[Path]:
    """Return all parts in a view's directory that hold rows, sorted."""
    return sorted(directory.glob("part-*.parquet"))


def read_manifest(file: Path) -> dict[str, str]:
    """Return the view and fingerprints that a part was written with; empty for a file that is no part.

    Raises
    ------
    PartError
        The file can't be read.
    """
    try:
        return _manifest_in(pq.read_schema(file))
    except (OSError, pa.ArrowInvalid, ValueError) as error:
        raise PartError(f"{file}: can't be read as a part ({error}); move it out of the view's directory") from None


def _manifest_in(schema: pa.Schema) -> dict[str, str]:
    return dict(json.loads((schema.metadata or {}).get(METADATA_KEY, b"{}")))
