"""SIGKILL at random points: the resumed run ends with the content of an undisturbed one."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time

import numpy as np

from recsys_llm import schema
from recsys_llm.timestamps import now
from tests.workspace import make_repository, materialize, offline, online

VIEWS = (schema.USER_STATS, schema.ITEM_TEXT_EMBEDDING)

RUN = """
import sys
from datetime import UTC, datetime
from recsys_llm.retrieval import open_store
store = open_store(sys.argv[1])
store.materialize(datetime(1960, 1, 1, tzinfo=UTC), datetime.now(UTC), feature_views=sys.argv[2:])
"""


def run_and_kill(repository, stored: int | None, delay: float = 0.0) -> bool:
    """Materialise in a process that is killed once that many parts lie on disk; return whether it got to its end."""
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, str(repository), *VIEWS],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    with process:
        if stored is not None:
            while process.poll() is None and parts(repository) < stored:
                time.sleep(0.002)
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
        _, errors = process.communicate()
    assert process.returncode in (0, -signal.SIGKILL), errors
    return process.returncode == 0


def parts(repository) -> int:
    return sum(1 for view in VIEWS for _ in (repository / "data" / "features" / view).glob("part-*.parquet"))


def test_killed_runs_end_with_the_content_of_an_undisturbed_one(tmp_path, simulated_data):
    calm = make_repository(tmp_path / "calm", simulated_data)
    stormy = make_repository(tmp_path / "stormy", simulated_data)
    for repository in (calm, stormy):
        file = repository / "recsys_llm.yaml"
        file.write_text(file.read_text() + "chunk_rows: 16\n")
    materialize(calm, *VIEWS, end=now())
    total = parts(calm)
    chance = random.Random(20261124)
    for stored in sorted(chance.sample(range(1, total - 2), 3)):
        assert not run_and_kill(stormy, stored, delay=chance.uniform(0, 0.05))
        assert 0 < parts(stormy) < total
    assert run_and_kill(stormy, None)
    for view in VIEWS:
        expected, found = offline(calm, view), offline(stormy, view)
        assert len(found) == len(expected)
        vectors = [name for name in expected.columns if name == schema.EMBEDDING]
        for name in set(expected.columns) - set(vectors):
            assert expected[name].map(repr).tolist() == found[name].map(repr).tolist(), (view, name)
        for name in vectors:
            np.testing.assert_allclose(np.stack(expected[name]), np.stack(found[name]), atol=1e-5)
        keys = expected.iloc[:, 0].unique().tolist()
        one, other = online(calm, view, keys), online(stormy, view, keys)
        assert [set(one), len(one)] == [set(other), len(other)]
        for name in set(one) - set(vectors):
            assert one[name] == other[name], (view, name)
        for name in vectors:
            np.testing.assert_allclose(np.array(one[name]), np.array(other[name]), atol=1e-5)
