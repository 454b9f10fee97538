from __future__ import annotations

import pyarrow as pa
import pytest
import torch

from recsys_llm.seqgan import Checkpoint, train
from recsys_llm.seqgan.generator import Generator
from tests.seqgan.seqgan_data import SMALL, UNTIL, chain, vectors


@pytest.fixture(scope="session")
def events() -> pa.Table:
    return chain()


@pytest.fixture(scope="session")
def trained(events: pa.Table) -> Checkpoint:
    return train(events, SMALL, until=UNTIL, item_vectors=vectors(), device="cpu")


@pytest.fixture
def toy() -> Generator:
    """A policy over 4 items in double precision, far from uniform."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        policy = Generator(torch.tensor([3, 1, 2, 1]), None, embedding_dim=3, hidden_dim=4).double()
        for parameter in policy.parameters():
            parameter.data += 0.5 * torch.randn_like(parameter)
    return policy
