"""How soon a fresh process answers from a serving manifest, and how much memory it takes."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from recsys_llm.bench.online_world import World
from recsys_llm.errors import RetrievalError
from recsys_llm.retrieval import FeatureBatch, FeatureClient
from recsys_llm.retrieval.serving_export import export_serving

STARTS = 5
SECONDS, MIB = 0.5, 60.0

_PROGRAM = """
import hashlib, json, pathlib, resource, sys
from recsys_llm import LookupClient
from recsys_llm.timestamps import BEGINNING

manifest, options, user, items, column = json.loads(sys.stdin.read())
batch = LookupClient(manifest, redis_options=options, now=lambda: BEGINNING).lookup(user, items)
found = hashlib.sha256(batch.vector(column).tobytes()).hexdigest()
kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
status = pathlib.Path("/proc/self/status")
if status.is_file():  # Linux: ru_maxrss counts the parent's memory too, from before exec
    kib = int(status.read_text().split("VmHWM:")[1].split()[0])
print(json.dumps([found, kib]), flush=True)
"""


def measure_cold_start(
    world: World, client: FeatureClient, items: Sequence[str], column: str
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return results and targets of a process from its start to its first answer.

    Parameters
    ----------
    column
        A vector of the items; compared with what ``client`` reads.

    Raises
    ------
    RetrievalError
        The answers differ.
    """
    expected = _digest(client.lookup(world.user, items, service=world.service), column)
    with TemporaryDirectory(prefix="recsys_llm_serving_") as folder:
        file = Path(folder) / "serving.json"
        manifest = export_serving(client, world.service, file)
        options = _secrets(world) if manifest.store.get("secrets") else None
        asked = json.dumps([str(file), options, world.user, list(items), column])
        seconds, mib = [], []
        for _ in range(STARTS):
            started = time.perf_counter()
            done = subprocess.run([sys.executable, "-c", _PROGRAM], input=asked, capture_output=True, text=True)
            seconds.append(time.perf_counter() - started)
            if done.returncode:
                raise RetrievalError(f"bench online: a process with LookupClient failed:\n{done.stderr}")
            found, kib = json.loads(done.stdout)
            if found != expected:
                raise RetrievalError(f"bench online: LookupClient and FeatureClient differ in {column}")
            mib.append(kib / 1024)
    figures = {"cold_start_s": (seconds, SECONDS), "cold_start_mib": (mib, MIB)}
    results = [
        {"name": name, "median": float(np.median(values)), "p99": float(np.percentile(values, 99)), "runs": STARTS}
        for name, (values, _) in figures.items()
    ]
    targets = [
        {"name": name, "target": f"< {most:g}", "value": value, "met": value < most}
        for name, (values, most) in figures.items()
        for value in [float(np.median(values))]
    ]
    return results, targets


def _digest(batch: FeatureBatch, column: str) -> str:
    return hashlib.sha256(batch.vector(column).tobytes()).hexdigest()


def _secrets(world: World) -> dict[str, Any]:
    """Return what the manifest leaves out, to be piped to the process: never to its command line."""
    from feast.infra.online_stores.redis import RedisOnlineStore

    connection = world.store.config.online_store.connection_string
    options: dict[str, Any] = RedisOnlineStore._parse_connection_string(connection)[1]
    return options
