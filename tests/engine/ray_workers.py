"""Workers for Ray that need no model: a feature is the length of a text."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from recsys_llm.errors import ModelError


class LengthWorker:
    """Computes lengths. Some texts make it raise, or die: ``die`` until a file is there, ``die always`` each time."""

    def __init__(self, folder: str, fingerprint: str = "f1") -> None:
        self.folder = Path(folder)
        self._fingerprint = fingerprint
        (self.folder / f"worker-{os.getpid()}").touch()

    def fingerprint(self) -> str:
        return self._fingerprint

    def compute(self, rows: pa.RecordBatch, events: pa.RecordBatch | None) -> pa.RecordBatch:
        texts = rows.column("text").to_pylist()
        if "raise" in texts:
            raise ModelError("the model can't take this")
        if "bug" in texts:
            raise ZeroDivisionError("a bug")
        marker = self.folder / "died"
        if "die always" in texts or ("die" in texts and not marker.exists()):
            marker.touch()
            os._exit(1)
        if "slow" in texts:
            time.sleep(0.2)
        (self.folder / f"chunk-{texts[0]}-{os.getpid()}-{time.monotonic_ns()}").touch()
        extra = 0 if events is None else events.num_rows
        return pa.record_batch({"length": pc.add(pc.binary_length(rows.column("text")), extra)})


class BrokenWorker:
    """Can't be made."""

    def __init__(self, folder: str) -> None:
        raise ModelError("no weights here")

    def fingerprint(self) -> str:
        return "never"


class DyingWorker(BrokenWorker):
    """Dies when it is made, as if its machine had too little memory for the model."""

    def __init__(self, folder: str) -> None:
        (Path(folder) / f"worker-{os.getpid()}").touch()
        os._exit(1)
