"""A local Ray cluster for tests, gone when they end."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def local_cluster(*, cpus: int) -> Iterator[None]:
    """Start a cluster of this process's own, in a temporary folder, and stop it."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray leaves sockets and logs behind: its folder is removed. Unix sockets need a short path.
    with tempfile.TemporaryDirectory(prefix="ray_", dir="/tmp", ignore_cleanup_errors=True) as folder:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import ray

            ray.init(
                num_cpus=cpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                object_store_memory=100_000_000,
                _temp_dir=folder,
            )
        try:
            yield
        finally:
            ray.shutdown()


@contextlib.contextmanager
def head_of_a_cluster() -> Iterator[Any]:
    """Start a head without CPUs; machines are added to what is handed out, which is Ray's own Cluster."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    with tempfile.TemporaryDirectory(prefix="ray_", dir="/tmp", ignore_cleanup_errors=True) as folder:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import ray
            from ray.cluster_utils import Cluster

            head = {"num_cpus": 0, "include_dashboard": False, "temp_dir": folder, "object_store_memory": 80_000_000}
            cluster = Cluster(initialize_head=True, head_node_args=head)
            ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        try:
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()
