"""``recsys-llm train`` and ``seqgan backfill``: SeqGANs from the events and item vectors of a feature repository."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa

from recsys_llm.commands.training_curves import write_curves
from recsys_llm.commands.views import feature_view
from recsys_llm.config import Config, SequenceModelConfig, load_config
from recsys_llm.engine.engine import parts_directory
from recsys_llm.errors import ConfigError, did_you_mean
from recsys_llm.files import replaced_directory
from recsys_llm.producers.vectors import item_vectors
from recsys_llm.schema import EVENT_TIMESTAMP
from recsys_llm.seqgan import Checkpoint, ItemVectors, SeqGANConfig, TrainingProgress, train
from recsys_llm.seqgan.checkpoint import is_replaceable
from recsys_llm.seqgan.histories import Ints
from recsys_llm.seqgan.rolling import RollingModel, slice_directory, slice_times
from recsys_llm.sources import tables
from recsys_llm.timestamps import MICROSECOND, as_utc, from_micros, now
from recsys_llm.training_state import discard_state, state_directory

Progress = Callable[[TrainingProgress], None]


def train_sequence_model(
    repository: Path,
    name: str,
    *,
    until: datetime,
    config_file: str | None = None,
    settings: SeqGANConfig | None = None,
    overwrite: bool = False,
    resume: bool = True,
    device: str = "auto",
    progress: Progress | None = None,
) -> Checkpoint:
    """Train a sequence model of ``recsys_llm.yaml`` on events strictly before ``until``, and save its checkpoint.

    The state of an unfinished training is kept beside the checkpoint, in ``CHECKPOINT.partial``.

    Parameters
    ----------
    config_file
        As for :func:`recsys_llm.retrieval.open_store`; the registry there knows the view of item vectors.
    settings
        None: those of ``training`` in recsys_llm.yaml.
    resume
        Go on with an unfinished training of the same events and settings; False: start again.

    Raises
    ------
    ConfigError
        ``recsys_llm.yaml`` has no such model, its checkpoint exists and ``overwrite`` is not set, or ``until`` lies in
        the future.
    CheckpointError
        The state of the unfinished training is damaged.
    DataError
        The view of item vectors that the model starts from has not been materialised.
    TrainingError
        There is nothing to train on, or the loss is no longer finite.
    """
    task = _Task.of(repository, name, until, settings, config_file=config_file, overwrite=overwrite)
    return task.train(until, task.target, resume=resume, device=device, progress=progress)


def train_slices(
    repository: Path,
    name: str,
    *,
    slices: int,
    until: datetime,
    config_file: str | None = None,
    settings: SeqGANConfig | None = None,
    overwrite: bool = False,
    resume: bool = True,
    device: str = "auto",
    progress: Callable[[int, list[datetime]], Progress | None] | None = None,
) -> RollingModel:
    """Train a sequence model of ``recsys_llm.yaml`` anew for each of several time slices, and save them as one model.

    The time before ``until`` is cut into slices of about as many events each. Each model is trained on all that lies
    before the end of its slice; the last one, on all before ``until``. Views of the model then hold, from the second
    slice on, rows by the newest model that was trained before them. Models that an unfinished run has trained are kept.

    Parameters
    ----------
    slices
        2 or more models.
    progress
        Called with each model's place and all training cut-offs; returns what to call after its gradient steps.
    config_file, settings, overwrite, resume
        As for :func:`train_sequence_model`.

    Raises
    ------
    ConfigError
        As for :func:`train_sequence_model`, or the events have too few distinct times for as many slices.
    CheckpointError, DataError, TrainingError
        As for :func:`train_sequence_model`.
    """
    task = _Task.of(repository, name, until, settings, config_file=config_file, overwrite=overwrite)
    times = task.event_times()
    cuts = [*task.cuts(times, slices), until]
    building = task.target.with_name(f"{task.target.name}.slices")
    if not resume and building.exists():
        shutil.rmtree(building)
    checkpoints: list[Checkpoint] = []
    for number, cut in enumerate(cuts):
        told = None if progress is None else progress(number, cuts)
        place = slice_directory(building, number)
        # What the first slice's events say of repeats holds for all, or their lists would differ in kind.
        filter_seen = checkpoints[0].filter_seen if checkpoints else None
        known = Checkpoint.load(place) if place.exists() else None
        checkpoints.append(
            task.train(cut, place, resume=resume, device=device, progress=told, filter_seen=filter_seen, known=known)
        )
    models = RollingModel(tuple(checkpoints))
    models.write(building)
    with replaced_directory(task.target) as fresh:
        shutil.copytree(building, fresh, dirs_exist_ok=True)
    shutil.rmtree(building)
    return models


@dataclass(frozen=True)
class _Task:
    config: Config
    model: SequenceModelConfig
    settings: SeqGANConfig
    until: datetime
    target: Path
    config_file: str | None

    @classmethod
    def of(
        cls,
        repository: Path,
        name: str,
        until: datetime,
        settings: SeqGANConfig | None,
        *,
        config_file: str | None,
        overwrite: bool,
    ) -> _Task:
        config = load_config(repository)
        if name not in config.sequence_models:
            raise ConfigError(f"unknown sequence model {name!r}; {did_you_mean(name, config.sequence_models)}")
        model = config.sequence_models[name]
        until = as_utc(until, name="until")
        if until > now():
            raise ConfigError(
                f"until: expected a time that has passed, found {until}; later events would count as unseen"
            )
        target = config.path(model.checkpoint)
        if target.exists() and not overwrite:
            raise ConfigError(
                f"{target}: exists; views hold its predictions, which must not be mixed with another model's: add a "
                "model and a view of a new version, or pass --overwrite if no view has been materialised with it"
            )
        if not is_replaceable(target):
            raise ConfigError(f"{target}: exists and is no model; name another directory under 'checkpoint'")
        settings = settings or SeqGANConfig.of(model.training, where=name)
        return cls(config, model, settings, until, target, config_file)

    def event_times(self) -> Ints:
        """Return the times of all events before ``until``, ascending, in microseconds since the epoch."""
        found = [batch.column(EVENT_TIMESTAMP).cast(pa.int64()) for batch in self._events(self.until, "time")]
        return np.concatenate([part.to_numpy() for part in found] or [np.zeros(0, np.int64)])

    def cuts(self, times: Ints, slices: int) -> list[datetime]:
        """Return the times at which a slice ends and the next one begins."""
        found = slice_times(times, slices) if len(times) else []
        if len(found) != slices - 1:
            raise ConfigError(
                f"slices: expected {len(found) + 1} at most for {len(times)} events before {self.until}, found "
                f"{slices}; ask for fewer"
            )
        return [from_micros(cut) for cut in found]

    def train(
        self,
        until: datetime,
        target: Path,
        *,
        resume: bool,
        device: str,
        progress: Progress | None,
        filter_seen: bool | None = None,
        known: Checkpoint | None = None,
    ) -> Checkpoint:
        """Train, save and draw one model; ``known``, which is at ``target``, where it came of the same training."""
        state = state_directory(target)
        if not resume:
            discard_state(state)
        checkpoint = train(
            self._events(until, "user"),
            self.settings,
            until=until,
            item_vectors=self._vectors(until),
            device=device,
            progress=progress,
            state=state,
            filter_seen=self.model.filter_seen if filter_seen is None else filter_seen,
            known=known,
        )
        if checkpoint is not known:
            checkpoint.save(target)
        write_curves(checkpoint, target)
        discard_state(state)
        return checkpoint

    def _events(self, until: datetime, order_by: tables.Order) -> Iterator[pa.RecordBatch]:
        return tables.interactions(self.config, end=until - MICROSECOND, order_by=order_by)

    def _vectors(self, until: datetime) -> ItemVectors | None:
        if self.model.item_vectors is None:
            return None
        view = feature_view(self.config.root, self.model.item_vectors, config_file=self.config_file)
        return item_vectors(parts_directory(view, self.config.root), view.name, before=until)
