"""One altered bit anywhere in a part or a checkpoint: refused, and named, each time."""

from __future__ import annotations

import os
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys_llm import schema
from recsys_llm.errors import CheckpointError, FingerprintError, LedgerError, PartError
from recsys_llm.part_names import part_name
from recsys_llm.producers import Parts
from recsys_llm.producers.vectors import item_vectors
from recsys_llm.retrieval import FeatureClient
from recsys_llm.seqgan import Checkpoint, train
from recsys_llm.timestamps import TIMESTAMP, now
from tests.retrieval.feast_repository import EVERYTHING, Repository, examples, hours, online_config
from tests.retrieval.history_rows import ITEMS, USERS, fill
from tests.seqgan.seqgan_data import SMALL, UNTIL, chain, vectors

pytestmark = [pytest.mark.faults, pytest.mark.security]

FLIPS = 200


def flipped(file: Path, chance: random.Random):
    """Yield once for each flip; the file is restored afterwards."""
    original = file.read_bytes()
    place, bit = chance.randrange(len(original)), chance.randrange(8)
    altered = bytearray(original)
    altered[place] ^= 1 << bit
    file.write_bytes(bytes(altered))
    os.utime(file, ns=(0, place * 8 + bit + 1))  # two flips may come within one tick of the file system's clock
    try:
        yield f"{file.name}, byte {place}, bit {bit}"
    finally:
        file.write_bytes(original)
        os.utime(file, ns=(0, 0))


def test_parts(tmp_path):
    rng, count = np.random.default_rng(0), 300
    vectors = pa.array(list(rng.standard_normal((count, 8)).astype(np.float32)), pa.list_(pa.float32()))
    stamps = pa.array([now()] * count, TIMESTAMP)
    hashes = pa.array([rng.bytes(16) for _ in range(count)], pa.binary(16))
    table = pa.table(
        {
            schema.ITEM_ID: pa.array([f"i{number}" for number in range(count)]),
            schema.EMBEDDING: vectors,
            schema.EVENT_TIMESTAMP: stamps,
            schema.CREATED_TIMESTAMP: stamps,
            schema.CONTENT_HASH: hashes,
        }
    )
    name = Parts(tmp_path / "v", "v", {"fingerprint": "f"}).write(table)
    chance = random.Random(1)
    for _ in range(FLIPS):
        for where in flipped(tmp_path / "v" / name, chance):
            with pytest.raises(LedgerError, match=f"{name}: expected SHA-256"):
                Parts(tmp_path / "v", "v", {"fingerprint": "f"}).read(name)
                pytest.fail(where)
    assert Parts(tmp_path / "v", "v", {"fingerprint": "f"}).read(name).equals(table)


def test_training_sets(tmp_path):
    """Parts of vectors, lists and numbers: of those that are joined here, and those that are read by row id."""
    repository = Repository(tmp_path, online=online_config("sqlite", tmp_path))
    fill(repository)
    files = []
    for file in sorted(tmp_path.glob("features/*/*.parquet")):
        if pq.read_metadata(file).num_rows:
            files.append(file.rename(file.with_name(part_name(file))))
    assert len({file.parent.name for file in files}) == 4
    asked = examples(*[(user, item, hours(5)) for user in USERS for item in ITEMS])

    def training_set():
        with FeatureClient(store=repository.store) as client:
            return client.training_set(asked, service=EVERYTHING).to_pandas()

    expected, chance = training_set(), random.Random(3)
    for number in range(FLIPS):
        for where in flipped(files[number % len(files)], chance):
            with pytest.raises((PartError, FingerprintError), match="part-"):
                training_set()
                pytest.fail(where)
    pd.testing.assert_frame_equal(training_set(), expected)


def test_vectors_that_models_start_from(tmp_path):
    manifest = {"fingerprint": "f", "encoder_fingerprint": "e"}
    stamps = pa.array([now()] * 50, TIMESTAMP)
    table = pa.table(
        {
            schema.ITEM_ID: pa.array([f"i{number}" for number in range(50)]),
            schema.EMBEDDING: pa.array([[float(number)] * 8 for number in range(50)], pa.list_(pa.float32())),
            schema.EVENT_TIMESTAMP: stamps,
            schema.CREATED_TIMESTAMP: stamps,
        }
    )
    file = tmp_path / "v" / Parts(tmp_path / "v", "v", manifest).write(table)
    chance = random.Random(4)
    for _ in range(50):
        for where in flipped(file, chance):
            with pytest.raises(PartError, match="expected SHA-256"):
                item_vectors(tmp_path / "v", "v", before=now())
                pytest.fail(where)
    assert len(item_vectors(tmp_path / "v", "v", before=now()).vectors) == 50


def test_checkpoints(tmp_path):
    settings = replace(SMALL, mle_epochs=1, adversarial_epochs=0)
    checkpoint = train(chain(), settings, until=UNTIL, item_vectors=vectors(), device="cpu")
    checkpoint.save(tmp_path / "model")
    files = sorted((tmp_path / "model").iterdir())
    assert len(files) >= 3
    chance = random.Random(2)
    for number in range(FLIPS):
        # Each file in turn, so that small ones are not left out.
        file = files[number % len(files)]
        for where in flipped(file, chance):
            with pytest.raises(CheckpointError, match="model"):
                Checkpoint.load(tmp_path / "model")
                pytest.fail(where)
    assert Checkpoint.load(tmp_path / "model").fingerprint == checkpoint.fingerprint
