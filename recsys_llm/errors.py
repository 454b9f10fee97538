"""Everything that recsys_llm raises on purpose.

::

    RecsysLLMError
    ├── UnsafeRegistryError   a registry row would run code when it is read
    ├── RegistryError         the registry can't be opened, has not the tables of this Feast, or lacks the project
    ├── ConfigError           recsys_llm.yaml or a feature view's tag: unknown key, value out of range
    ├── DataError             the user's data
    │   ├── SchemaError       a column is missing or has another type
    │   ├── RowError          a row can't be used: null id, duplicate key, NaN vector, stamp in the future
    │   └── DownloadError     a data set could not be fetched, or its checksum differs
    ├── ModelError            a model can't be loaded or used
    │   ├── CheckpointError   a file is missing, altered or of another version
    │   └── TrainingError     training can't start or went wrong: no events, a loss that is not finite
    ├── LeakageError          a value would come from data at or after its own time
    ├── FingerprintError      two model versions would be mixed
    ├── ExecutorError         work on other processes could not be done
    ├── LedgerError           the ledger is locked by another run, or contradicts the parts
    │   └── PartError         a stored part was altered, or can't be read
    ├── MigrationError        services can't be moved to a new version: rows are missing, or the repository disagrees
    └── RetrievalError        a training set or a lookup can't be answered
        ├── ServiceError      the feature service is unknown, or lacks what is asked of it
        └── StoreError        the online store failed, or holds bytes that are no value of ours
            └── LayoutError   the online store holds something else than the registry says
            ├── EmptiedStoreError    it lacks what was published: it was flushed, or restarted without its data
            └── EvictingStoreError   it would drop rows when it is full

Every message says what was expected, what was found and what to do next.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RecsysLLMError(Exception):
    """Base of every error that recsys_llm raises on purpose."""


class UnsafeRegistryError(RecsysLLMError):
    """A registry row would run code when it is read; it was not loaded."""


class RegistryError(RecsysLLMError):
    """The registry can't be opened, or lacks tables, columns or the project; nothing was made."""


class ConfigError(RecsysLLMError):
    """A configuration file or a feature view's tag is not valid."""


class DataError(RecsysLLMError):
    """The user's data can't be used as it is."""


class SchemaError(DataError):
    """A column is missing or has another type than expected."""


class RowError(DataError):
    """A row can't be used; the message names file, row and column."""


class DownloadError(DataError):
    """A data set could not be fetched, or is not the expected file."""


class ModelError(RecsysLLMError):
    """A model can't be loaded or used."""


class CheckpointError(ModelError):
    """A checkpoint is missing, altered, or of a version that this package doesn't read."""


class TrainingError(ModelError):
    """Training can't start, or stopped because its loss is no longer finite."""


class LeakageError(RecsysLLMError):
    """A feature, model or statistic would come from data at or after its own time."""


class FingerprintError(RecsysLLMError):
    """Vectors or models of two versions would be mixed."""


class ExecutorError(RecsysLLMError):
    """Work that was given to other processes could not be done."""


class LedgerError(RecsysLLMError):
    """The ledger is held by another run, or contradicts the parts on disk."""


class PartError(LedgerError):
    """A stored part is not as it was written, or can't be read."""


class MigrationError(RecsysLLMError):
    """Services can't be moved to another version of a view; nothing has been switched."""


class RetrievalError(RecsysLLMError):
    """A training set or an online lookup can't be answered."""


class ServiceError(RetrievalError):
    """A feature service is unknown, or lacks a feature that is needed."""


class StoreError(RetrievalError):
    """The online store failed, or holds bytes that are no value of ours."""


class LayoutError(StoreError):
    """The online store holds something else than the registry says, as it was last read: other types or tables."""


class EmptiedStoreError(StoreError):
    """The online store lacks what was published: it was flushed, or restarted without its data."""


class EvictingStoreError(StoreError):
    """The online store would drop rows when it is full."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the hint that ends a message about an unknown name.

    Examples
    --------
    >>> did_you_mean("poolng", ["pooling", "model"])
    "did you mean 'pooling'? Known: model, pooling"
    >>> did_you_mean("x", ["pooling", "model"])
    'known: model, pooling'
    """
    names = sorted(known)
    nearest = difflib.get_close_matches(name, names, n=1)
    if nearest:
        return f"did you mean {nearest[0]!r}? Known: {', '.join(names)}"
    return f"known: {', '.join(names)}"
