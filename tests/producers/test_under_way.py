"""An executor that loses a chunk, or returns one twice, ends the run; what was recorded is right."""

from __future__ import annotations

import pytest

from recsys_llm.errors import ExecutorError
from tests.fakes import FakeProducer
from tests.producers.test_pipeline import ROWS, World


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path)
    yield world
    world.ledger.close()


@pytest.mark.parametrize(
    ("returned", "problem"),
    [([1], "5 rows was sent and never came back"), ([1, 1], "5 rows came back that was not under way")],
    ids=["lost", "doubled"],
)
def test_an_executor_has_to_return_each_chunk_once(world, returned, problem):
    producer = FakeProducer(ROWS[:10], chunk_rows=5)

    def execute(chunks):
        sent = list(chunks)
        for number in returned:
            yield sent[number], producer.compute(sent[number].rows, None)

    with pytest.raises(ExecutorError, match=f"view toy_v1: expected each chunk back once, a chunk of {problem}"):
        world.run(producer, execute=execute)
    assert len(set(world.offline())) == len(world.offline()) == 5
    world.run(FakeProducer(ROWS[:10]))
    assert len(set(world.offline())) == len(world.offline()) == 10
