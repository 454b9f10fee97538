"""Training of a SeqGAN for next items.

Yu et al. 2017, "SeqGAN: Sequence Generative Adversarial Nets with Policy Gradient", algorithm 1: pre-train the
generator by maximum likelihood, pre-train the discriminator, then alternate policy-gradient and discriminator steps.
Here everything is conditional on a user's history, policy-gradient steps are interleaved with teacher forcing, and the
generator with the better validation NDCG@10 is the one that predicts: both are kept, and both scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from recsys_llm.errors import TrainingError
from recsys_llm.schema import EVENT_TIMESTAMP, ITEM_ID
from recsys_llm.seqgan.adversarial import train_adversarially
from recsys_llm.seqgan.checkpoint import Checkpoint, GeneratorName
from recsys_llm.seqgan.devices import resolve_device
from recsys_llm.seqgan.evaluation import Scores, sample_groups, score_generator, score_popularity, split_time
from recsys_llm.seqgan.generator import Generator
from recsys_llm.seqgan.histories import Histories, Ints, sorted_interactions
from recsys_llm.seqgan.pretraining import copy_weights, pretrain
from recsys_llm.seqgan.rebuy import fit_rebuy
from recsys_llm.seqgan.resuming import SavedTraining
from recsys_llm.seqgan.sequences import Sequences
from recsys_llm.seqgan.settings import SeqGANConfig, TrainingProgress
from recsys_llm.seqgan.vocabulary import ItemVectors, Vocabulary
from recsys_llm.timestamps import as_utc, to_micros
from recsys_llm.training_state import data_digest, run_name

REPEATS_ARE_RARE = 0.05
"""Where fewer events than this share repeat an item, predictions leave out what a user has had."""


def train(
    interactions: pa.Table | Iterable[pa.RecordBatch],
    config: SeqGANConfig | None = None,
    *,
    until: datetime,
    item_vectors: ItemVectors | None = None,
    device: str = "auto",
    progress: Callable[[TrainingProgress], None] | None = None,
    state: Path | None = None,
    filter_seen: bool | None = None,
    known: Checkpoint | None = None,
) -> Checkpoint:
    """Train a SeqGAN on the events strictly before ``until``.

    Parameters
    ----------
    interactions
        Canonical: ``user_id``, ``item_id`` (string) and ``event_timestamp`` (timestamp[us, UTC]), in any order. All
        events count, liked or not; rows at or after ``until`` are not looked at.
    config
        None: the defaults.
    item_vectors
        Text vectors of the catalogue as known before ``until``. Items without events can then be predicted too.
    device
        "auto", or a torch device.
    progress
        Called after every gradient step.
    state
        Directory that keeps the state of each epoch of pre-training. A training that was interrupted goes on from
        there, with the result that it would have had; adversarial training begins anew. Remove it when done.
    filter_seen
        Whether predictions leave out what a user has had; None: where fewer than 5% of the events repeat an item.
    known
        Returned instead of training, if it came of the same events, item vectors and settings.

    Raises
    ------
    CheckpointError
        ``state`` is damaged, or holds something else.
    TrainingError
        There are no two groups to learn a transition from, or the loss is not finite from the start. A later loss that
        is not finite ends the phase; the best weights so far are kept and the manifest says so.
    """
    config = config or SeqGANConfig()
    until = as_utc(until, name="until")
    data = _prepare(interactions, config, until, item_vectors, filter_seen)
    target = resolve_device(device)
    run = _run(data, config, until, target)
    if known is not None and known.manifest.get("run") == run:
        return known
    threads_state = torch.random.fork_rng(devices=[target] if target.type == "cuda" else [])
    with threads_state:  # the caller's random state is left alone
        torch.manual_seed(config.seed)
        saved = None if state is None else SavedTraining(state, run, target)
        return _train(data, config, until, item_vectors, target, progress or _silent, run, saved)


@dataclass(frozen=True, eq=False)
class _Data:
    vocabulary: Vocabulary
    everything: Sequences
    """All events before ``until``."""
    train: Sequences
    """Those before the validation slice."""
    validation: Ints
    """Groups of ``everything`` to validate on."""
    text: npt.NDArray[np.float32] | None
    filter_seen: bool
    repeat_share: float
    rng: np.random.Generator


def _prepare(
    interactions: pa.Table | Iterable[pa.RecordBatch],
    config: SeqGANConfig,
    until: datetime,
    item_vectors: ItemVectors | None,
    filter_seen: bool | None,
) -> _Data:
    table = sorted_interactions(interactions)
    table = table.filter(pc.less(table[EVENT_TIMESTAMP], pa.scalar(until, table[EVENT_TIMESTAMP].type)))
    histories = Histories.from_interactions(table)
    if not len(histories.item_ids):
        raise TrainingError(f"expected events before {until}, found none; check the period and the interactions table")
    catalogue = () if item_vectors is None else item_vectors.item_ids
    vocabulary = Vocabulary.build(table[ITEM_ID], catalogue)
    everything = Sequences.encode(histories, vocabulary)
    split = split_time(everything, config.validation_share)
    train_part = everything.before(split)
    if not len(train_part.timestamps):
        raise TrainingError(
            f"expected events at two times or more before {until}, found {len(everything.items)} at one"
        )
    rng = np.random.default_rng(config.seed)
    repeat_share = everything.repeat_share()
    return _Data(
        vocabulary=vocabulary,
        everything=everything,
        train=train_part.capped(config.max_group_items, rng),
        validation=sample_groups(everything, split, to_micros(until), config.validation_groups, config.seed),
        text=None if item_vectors is None else vocabulary.aligned(item_vectors)[0],
        filter_seen=repeat_share < REPEATS_ARE_RARE if filter_seen is None else filter_seen,
        repeat_share=repeat_share,
        rng=rng,
    )


def _train(
    data: _Data,
    config: SeqGANConfig,
    until: datetime,
    item_vectors: ItemVectors | None,
    device: torch.device,
    progress: Callable[[TrainingProgress], None],
    run: str,
    saved: SavedTraining | None,
) -> Checkpoint:
    sizes = {"embedding_dim": config.embedding_dim, "hidden_dim": config.hidden_dim}
    counts = torch.from_numpy(np.bincount(data.train.items, minlength=len(data.vocabulary)))
    text = None if data.text is None else torch.from_numpy(data.text)
    generator = Generator(counts, text, **sizes).to(device)
    started = perf_counter()

    def scores(policy: Generator) -> Scores:
        with torch.no_grad():
            table = policy.item_table()
        vectors = table.vectors
        return score_generator(policy, table, vectors, data.everything, data.validation, filter_seen=data.filter_seen)

    def validate(policy: Generator) -> float:
        return scores(policy)["ndcg_at_10"]

    mle = pretrain(
        generator,
        data.train,
        config,
        validate=lambda: validate(generator),
        rng=data.rng,
        progress=progress,
        saved=saved,
    )
    if not data.filter_seen:
        fit_rebuy(generator, data.everything, data.validation)
    seconds = {"mle": perf_counter() - started}
    popularity = np.bincount(data.train.items, minlength=len(data.vocabulary))
    results: dict[str, Scores] = {
        "popularity": score_popularity(popularity, data.everything, data.validation, filter_seen=data.filter_seen),
        "mle": scores(generator),
    }
    generators: dict[GeneratorName, Generator] = {"mle": _copy(generator, counts, text, sizes)}
    losses: dict[str, Any] = {"mle": {"loss": mle.losses, "ndcg_at_10": mle.scores}}
    stopped = {} if mle.stopped is None else {"mle": mle.stopped}
    if config.adversarial_epochs:
        started = perf_counter()
        adversarial = train_adversarially(
            generator, data.train, config, validate=validate, rng=data.rng, progress=progress
        )
        seconds["adversarial"] = perf_counter() - started
        losses |= adversarial.losses
        if adversarial.stopped is not None:
            stopped["adversarial"] = adversarial.stopped
        results["adversarial"] = scores(generator)
        generators["adversarial"] = _copy(generator, counts, text, sizes)
    better = config.adversarial_epochs and results["adversarial"]["ndcg_at_10"] > results["mle"]["ndcg_at_10"]
    manifest = {
        "run": run,
        "trained_until": until.isoformat(),
        "chosen": "adversarial" if better else "mle",
        "scores": results,
        "filter_seen": data.filter_seen,
        "repeat_share": data.repeat_share,
        "events": len(data.everything.items),
        "groups": len(data.everything.timestamps),
        "users": int((np.diff(data.everything.user_offsets) > 0).sum()),
        "items": len(data.vocabulary),
        "validation_groups": len(data.validation),
        "text": None
        if item_vectors is None
        else {"fingerprint": item_vectors.fingerprint, "dim": item_vectors.vectors.shape[1]},
        "generator": sizes,
        "config": asdict(config),
        "losses": losses,
        "stopped": stopped,
        "seconds": seconds,
    }
    all_counts = np.bincount(data.everything.items, minlength=len(data.vocabulary))
    return Checkpoint.build(data.vocabulary, all_counts, data.text, generators, manifest)


def _run(data: _Data, config: SeqGANConfig, until: datetime, device: torch.device) -> str:
    """Return the name of a training: all that decides its outcome."""
    every = data.everything
    arrays = every.items, every.group_offsets, every.user_offsets, every.timestamps
    text = () if data.text is None else (data.text,)
    digest = data_digest(data.vocabulary.item_ids, *arrays, *text)
    settings = {"config": asdict(config), "filter_seen": data.filter_seen, "until": until.isoformat()}
    return run_name(**settings, data=digest, device=device.type)


def _copy(generator: Generator, counts: torch.Tensor, text: torch.Tensor | None, sizes: dict[str, Any]) -> Generator:
    copy = Generator(counts, text, **sizes)
    copy.load_state_dict({name: value.cpu() for name, value in copy_weights(generator).items()})
    return copy.eval()


def _silent(progress: TrainingProgress) -> None:
    """Report to nobody."""
