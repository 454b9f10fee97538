"""The generators that ``evaluate next-items`` compares, trained once for each seed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np
import numpy.typing as npt
import torch

from recsys_llm.bench.next_items_scoring import Scorer
from recsys_llm.bench.next_items_world import Tasks, World
from recsys_llm.seqgan import Checkpoint, ItemVectors, SeqGANConfig, TrainingProgress, train
from recsys_llm.seqgan.devices import resolve_device
from recsys_llm.seqgan.evaluation import score_generator
from recsys_llm.seqgan.generator import Generator, ItemTable, logits
from recsys_llm.seqgan.prediction import reading_side
from recsys_llm.seqgan.pretraining import continue_training
from recsys_llm.seqgan.ranking import Rebuy, add_rebuy, rebuy_entries
from recsys_llm.seqgan.reading import queries_after

ID_ONLY, CONTENT = "MLE id-only", "MLE content"
ADVERSARIAL, CONTROL, CHOSEN = "adversarial", "equal-steps control", "chosen"


@dataclass(frozen=True, eq=False)
class TrainedGenerator:
    """One contestant of one seed."""

    name: str
    seed: int
    scorer: Scorer
    seconds: float
    """Of all training that it needed, pre-training included."""
    validation: float
    """NDCG@10 on the validation slice, by which it was stopped or chosen."""


def train_generators(
    world: World,
    config: SeqGANConfig,
    seed: int,
    *,
    device: str = "auto",
    progress: Callable[[TrainingProgress], None] | None = None,
) -> Iterator[TrainedGenerator]:
    """Yield the five generators of a seed as they are trained: all stop before the world's cut-off.

    The id-only one has the same catalogue, with no text vector for anything. The control goes on from the content
    model by maximum likelihood, for as many steps as the adversarial phase takes.
    """
    config = replace(config, seed=seed)
    blank = ItemVectors(world.train_vectors.item_ids, np.zeros((len(world.train_vectors.item_ids), 1), np.float32), "")
    checkpoint = _train(world, replace(config, adversarial_epochs=0), blank, device, progress)
    yield _contestant(ID_ONLY, "mle", world, checkpoint, None, device)
    checkpoint = _train(world, config, world.train_vectors, device, progress)
    vectors = world.all_vectors
    yield _contestant(CONTENT, "mle", world, checkpoint, vectors, device)
    if "adversarial" in checkpoint.generators:
        yield _contestant(ADVERSARIAL, "adversarial", world, checkpoint, vectors, device)
        yield _control(world, checkpoint, config, device)
    yield _contestant(CHOSEN, checkpoint.manifest["chosen"], world, checkpoint, vectors, device)


def _train(
    world: World,
    config: SeqGANConfig,
    vectors: ItemVectors,
    device: str,
    progress: Callable[[TrainingProgress], None] | None,
) -> Checkpoint:
    return train(world.interactions, config, until=world.until, item_vectors=vectors, device=device, progress=progress)


def _contestant(
    name: str, trained: str, world: World, checkpoint: Checkpoint, vectors: ItemVectors | None, device: str
) -> TrainedGenerator:
    seconds = checkpoint.manifest["seconds"]
    # The choice between two needs both of them.
    spent = sum(seconds.values()) if name == CHOSEN else seconds["mle"] + (seconds[trained] if trained != "mle" else 0)
    model = checkpoint.generators["mle" if trained == "mle" else "adversarial"]
    return TrainedGenerator(
        name,
        checkpoint.manifest["config"]["seed"],
        generator_scorer(model, checkpoint, world, vectors, device),
        spent,
        checkpoint.manifest["scores"][trained]["ndcg_at_10"],
    )


def _control(world: World, checkpoint: Checkpoint, config: SeqGANConfig, device: str) -> TrainedGenerator:
    train_part, tasks = world.validation(config.validation_share, config.validation_groups)
    rng = np.random.default_rng([config.seed, 1])
    model = copy.deepcopy(checkpoint.generators["mle"]).to(resolve_device(device))
    started = perf_counter()

    def validate() -> float:
        with torch.no_grad():
            table = model.item_table()
        groups = tasks.groups
        return score_generator(model, table, table.vectors, world.sequences, groups, filter_seen=world.filter_seen)[
            "ndcg_at_10"
        ]

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        scores = continue_training(
            model,
            train_part.capped(config.max_group_items, rng),
            config,
            epochs=config.adversarial_epochs,
            steps=config.generator_steps,
            validate=validate,
            rng=rng,
        )
    seconds = checkpoint.manifest["seconds"]["mle"] + perf_counter() - started
    scorer = generator_scorer(model, checkpoint, world, world.all_vectors, device)
    return TrainedGenerator(CONTROL, config.seed, scorer, seconds, max(scores))


@torch.no_grad()
def generator_scorer(
    model: Generator, checkpoint: Checkpoint, world: World, vectors: ItemVectors | None, device: str = "auto"
) -> Scorer:
    """Return log-probabilities, but for a constant of each task, of the whole catalogue.

    Parameters
    ----------
    vectors
        Text vectors of the catalogue, in the world's order; None: items outside the vocabulary are not read, and all
        score the same.
    """
    model = model.to(resolve_device(device)).eval()
    table = model.item_table()
    sequences, read = reading_side(checkpoint, model, table, world.histories, vectors)
    new = len(world.item_ids) - len(world.vocabulary)
    known = read if vectors is not None else torch.cat([read, read.new_zeros(new, read.shape[1])])
    prior = model.popularity_scale * torch.log(torch.tensor(0.5, device=read.device))  # as for an item without events
    extended = ItemTable(known, torch.cat([table.bias, prior.repeat(new)]))

    setting = Rebuy(*model.rebuy.tolist())

    @torch.no_grad()
    def scores(tasks: Tasks) -> npt.NDArray[np.float32]:
        queries = queries_after(model, read, sequences, tasks.users, tasks.read)
        found = logits(queries, extended)
        if setting.weight and not world.filter_seen:
            entries = rebuy_entries(sequences, tasks.users, tasks.read, found.shape[1], setting)
            add_rebuy(found, entries, setting.weight)
        return np.asarray(found.cpu().numpy(), np.float32)

    return scores
