"""One altered bit anywhere in a part or a checkpoint: refused, and named, each time."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from recsys_llm import schema
from recsys_llm.errors import CheckpointError, LedgerError
from recsys_llm.producers import Parts
from recsys_llm.seqgan import Checkpoint, train
from recsys_llm.timestamps import TIMESTAMP, now
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
    try:
        yield f"{file.name}, byte {place}, bit {bit}"
    finally:
        file.write_bytes(original)


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
