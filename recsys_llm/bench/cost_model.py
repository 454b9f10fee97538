"""What it costs to encode a large catalogue with ``executor: ray``: a model on paper, not a measurement."""

from __future__ import annotations

import math
from dataclasses import dataclass

FLOAT_BYTES = 4
KEY_BYTES = 64
"""Of a stored row beside its vector: key, two times, content hash and row id."""
REDIS_BYTES = 300
"""Of an item's hash in Redis beside its vector: key, field names, the wrapping of values, the allocator's rounding."""
TEXT_BYTES = 400
"""Of a text and its key, as sent to a worker."""
GIB = 2**30


@dataclass(frozen=True)
class Cost:
    """Of encoding all items once."""

    items: int
    gpu_hours: float
    gpus: int
    """So many that ``hours`` is not exceeded, or as many as the driver can keep busy."""
    hours: float
    limited_by: str
    """``gpus``, or ``driver``: more GPUs would wait."""
    offline_gib: float
    """Of parts on disk: random floats don't compress."""
    online_gib: float
    """In Redis's memory, without replicas."""
    network_gib: float
    """Texts to the workers and vectors back, each row once: no shuffle, since a row depends on no other."""


@dataclass(frozen=True)
class CostModel:
    """What large catalogues cost.

    Assumes that chunks are independent (no shuffle, so GPUs add up), that the one driver reads, stores and publishes
    all rows, that each item has one version, and that no worker dies. A GPU's start (seconds to load a model) is left
    out.

    Examples
    --------
    >>> model = CostModel(rows_per_s_per_gpu=1000, driver_rows_per_s=5000, hours=1)
    >>> made = model.of(10_000_000)
    >>> made.gpus, round(made.hours, 2), round(made.gpu_hours, 2), made.limited_by
    (3, 0.93, 2.78, 'gpus')
    >>> model.of(1_000_000_000).limited_by
    'driver'
    """

    rows_per_s_per_gpu: float
    """Measured on the GPU and the texts at hand: `recsys-llm bench text` there."""
    driver_rows_per_s: float
    """Rows that the driver stores: parts, online store and ledger."""
    dimension: int = 384
    """Of a float32 vector."""
    hours: float = 24.0
    """Within which it should be done."""

    def of(self, items: int) -> Cost:
        """Return GPUs, hours and bytes for ``items`` texts."""
        wanted = math.ceil(items / (self.rows_per_s_per_gpu * self.hours * 3600))
        useful = math.ceil(self.driver_rows_per_s / self.rows_per_s_per_gpu)
        gpus = max(1, min(wanted, useful))
        rate = min(gpus * self.rows_per_s_per_gpu, self.driver_rows_per_s)
        vector = FLOAT_BYTES * self.dimension
        return Cost(
            items=items,
            gpu_hours=items / self.rows_per_s_per_gpu / 3600,
            gpus=gpus,
            hours=items / rate / 3600,
            limited_by="driver" if wanted > useful else "gpus",
            offline_gib=items * (vector + KEY_BYTES) / GIB,
            online_gib=items * (vector + REDIS_BYTES) / GIB,
            network_gib=items * (vector + TEXT_BYTES) / GIB,
        )
