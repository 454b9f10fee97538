"""Averaged weights, and further teacher-forced steps as a control."""

from __future__ import annotations

import copy

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

from recsys_llm.seqgan import Checkpoint, Histories
from recsys_llm.seqgan.averaging import WeightAverage
from recsys_llm.seqgan.evaluation import hits_and_relevant, split_time
from recsys_llm.seqgan.pretraining import continue_training, copy_weights
from recsys_llm.seqgan.sequences import Sequences
from recsys_llm.timestamps import to_micros
from tests.seqgan.seqgan_data import SMALL, UNTIL


def test_the_average_is_plain_at_first_and_then_follows() -> None:
    module = nn.Linear(1, 1, bias=False)
    average = WeightAverage(module)
    for value in (1.0, 2.0, 6.0, 3.0):
        module.weight.data.fill_(value)
        average.follow(0.4)
    with average.in_place():
        # (1 + 2) / 2 = 1.5; from then on 0.4 of the way: 3.3, 3.18
        assert module.weight.item() == pytest.approx(3.18)
    assert module.weight.item() == 3.0
    with pytest.raises(RuntimeError), average.in_place():
        raise RuntimeError
    assert module.weight.item() == 3.0


@pytest.mark.parametrize(("scores", "best"), [([0.1, 0.3, 0.2], 1), ([0.3, 0.1, 0.3], 0)])
def test_the_control_keeps_the_best_of_its_epochs(
    trained: Checkpoint, events: pa.Table, scores: list[float], best: int
) -> None:
    sequences = Sequences.encode(Histories.from_interactions(events), trained.vocabulary).before(to_micros(UNTIL))
    model = copy.deepcopy(trained.generator("mle"))
    seen, told = [], iter(scores)

    def validate() -> float:
        seen.append(copy_weights(model))
        return next(told)

    found = continue_training(
        model, sequences, SMALL, epochs=2, steps=3, validate=validate, rng=np.random.default_rng(0)
    )
    assert found == scores
    assert all(torch.equal(seen[best][name], value) for name, value in copy_weights(model).items())
    assert not torch.equal(seen[0]["free"], seen[1]["free"]) and not torch.equal(seen[1]["free"], seen[2]["free"])


def test_hits_count_only_what_is_wanted() -> None:
    sequences = Sequences(np.array([0, 1, -1, 2]), np.array([0, 3, 4]), np.array([0, 2]), np.array([10, 20]))
    lists = np.array([[1, 5, -1], [2, 0, 1]])
    hits, relevant = hits_and_relevant(lists, sequences, np.array([0, 1]))
    assert hits.tolist() == [[True, False, False], [True, False, False]] and relevant.tolist() == [3, 1]
    wanted = np.array([True, False, True, True, True, True])
    hits, relevant = hits_and_relevant(lists, sequences, np.array([0, 1]), wanted)
    assert hits.tolist() == [[False] * 3, [True, False, False]] and relevant.tolist() == [1, 1]


def test_the_split_leaves_about_a_share_of_the_events() -> None:
    sizes = np.full(50, 4)
    sequences = Sequences(np.zeros(200, int), np.concatenate([[0], np.cumsum(sizes)]), np.array([0, 50]), np.arange(50))
    assert (np.arange(50) >= split_time(sequences, 0.1)).mean() == pytest.approx(0.1)
