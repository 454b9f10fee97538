"""Several models of one kind, each for the time from its training cut-off to the next one's.

So a whole history can be predicted without leakage, by models that had seen all that lay before::

    events   ----------|----------|----------|---------->
    models             A          B          C
    rows     none       A's        B's        C's

    seqgan_v1/
      slices.json      training cut-offs and fingerprints, with a SHA-256 of its own
      0000/ ...        a checkpoint each

A directory that holds a single checkpoint is read as one model, from its cut-off on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import NamedTuple, Self

from recsys_llm.errors import CheckpointError
from recsys_llm.files import canonical_json, read_signed_json, signed_json, write_synced
from recsys_llm.seqgan.checkpoint import SLICES_FILE, Checkpoint
from recsys_llm.seqgan.histories import Ints
from recsys_llm.timestamps import MICROSECOND


class Span(NamedTuple):
    """Rows stamped in (start, end], of one model."""

    number: int
    """Place of the model in :attr:`RollingModel.checkpoints`."""
    start: datetime
    end: datetime


@dataclass(frozen=True, eq=False)
class RollingModel:
    """One checkpoint or more, in the order of their training cut-offs.

    Raises
    ------
    CheckpointError
        Cut-offs are not ascending, or the models differ in what their features are made of.
    """

    checkpoints: tuple[Checkpoint, ...]

    def __post_init__(self) -> None:
        for before, after in zip(self.checkpoints, self.checkpoints[1:], strict=False):
            if before.trained_until >= after.trained_until:
                raise CheckpointError(
                    f"models of time slices: expected ascending training cut-offs, found {after.trained_until} after "
                    f"{before.trained_until}"
                )
            for name in ("generator", "text", "filter_seen"):
                if before.manifest[name] != after.manifest[name]:
                    raise CheckpointError(
                        f"models of time slices: expected one {name}, found {before.manifest[name]} until "
                        f"{after.trained_until} and {after.manifest[name]} from then on; train them with one setting"
                    )

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read the models of a directory and check every byte of them.

        Raises
        ------
        CheckpointError
            A file is missing, altered or of another format version; the message names it.
        """
        file = directory / SLICES_FILE
        if not file.exists():
            return cls((Checkpoint.load(directory),))
        try:
            described = list(read_signed_json(file.read_bytes())["slices"])
        except (OSError, ValueError, KeyError, TypeError):
            raise CheckpointError(f"{file}: not as it was written; copy it again or train anew") from None
        found = cls(tuple(Checkpoint.load(directory / _name(number)) for number in range(len(described))))
        if described != found._described():
            raise CheckpointError(f"{file}: names other models than those beside it; copy the directory again")
        return found

    def write(self, directory: Path) -> None:
        """Write :data:`SLICES_FILE` into a directory that :func:`slice_directory` named each checkpoint's place in."""
        write_synced(directory / SLICES_FILE, signed_json({"slices": self._described()}))

    @property
    def newest(self) -> Checkpoint:
        """The model that serves the present."""
        return self.checkpoints[-1]

    @property
    def fingerprint(self) -> str:
        """Hash (hex) of all models; of a single one, its own."""
        if len(self.checkpoints) == 1:
            return self.newest.fingerprint
        return hashlib.sha256(canonical_json(self._described())).hexdigest()

    def spans(self, start: datetime, end: datetime) -> Iterator[Span]:
        """Yield which model makes the rows of which part of (start, end]; none those before the first cut-off."""
        for number, checkpoint in enumerate(self.checkpoints):
            first = max(start, checkpoint.trained_until - MICROSECOND)
            following = self.checkpoints[number + 1 : number + 2]
            last = min([end, *(other.trained_until - MICROSECOND for other in following)])
            if first < last:
                yield Span(number, first, last)

    def _described(self) -> list[dict[str, str]]:
        return [
            {"trained_until": checkpoint.trained_until.isoformat(), "fingerprint": checkpoint.fingerprint}
            for checkpoint in self.checkpoints
        ]


def slice_directory(directory: Path, number: int) -> Path:
    """Return where a directory of slices holds a checkpoint."""
    return directory / _name(number)


def slice_times(stamps: Ints, slices: int) -> list[int]:
    """Return the times (microseconds) that cut sorted events into slices of about as many events each.

    There are ``slices - 1`` of them, or fewer where events share a time; a slice begins with the events at its time.

    Examples
    --------
    >>> import numpy as np
    >>> slice_times(np.arange(1, 7), 3)
    [3, 5]
    """
    cuts = {int(stamps[len(stamps) * number // slices]) for number in range(1, slices)}
    return sorted(cut for cut in cuts if cut > stamps[0])


def _name(number: int) -> str:
    return f"{number:04d}"
