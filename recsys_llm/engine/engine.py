"""The engine: what ``feast materialize`` calls for each feature view."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

import click
from feast import FeatureView, FileSource
from feast.infra.common.materialization_job import MaterializationJobStatus, MaterializationTask
from feast.infra.compute_engines.local.compute import LocalComputeEngine
from feast.infra.compute_engines.local.job import LocalMaterializationJob
from feast.infra.registry.base_registry import BaseRegistry
from feast.repo_config import FeastConfigBaseModel
from pydantic import Field
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from recsys_llm.config import Config, load_config
from recsys_llm.engine.copying import copy_rows, is_copied
from recsys_llm.engine.publish import OnlinePublisher
from recsys_llm.engine.ray_executor import RayExecutor, RayPool
from recsys_llm.engine.ray_worker import ComputeWorker, worker_config
from recsys_llm.engine.reporting import COPIED, configure_logs, report_copied, report_failure, report_run
from recsys_llm.engine.rows import Written
from recsys_llm.engine.runs import online_run
from recsys_llm.engine.vectors import check_vectors
from recsys_llm.engine.watermarks import keep_intervals
from recsys_llm.errors import ConfigError
from recsys_llm.producers import Parts, Producer, ProducerTag, Summary, open_ledger, open_producer, plan, produce
from recsys_llm.timestamps import BEGINNING, FUTURE_TOLERANCE, now


class FeatureComputeEngineConfig(FeastConfigBaseModel):  # type: ignore[misc]  # Feast ships no types
    """``batch_engine`` of feature_store.yaml."""

    type: Literal["recsys_llm.engine.FeatureComputeEngine"] = "recsys_llm.engine.FeatureComputeEngine"
    device: str = "auto"
    """``auto`` (a GPU where there is one), ``cpu``, ``cuda`` or ``cuda:N``."""
    executor: Literal["local", "ray"] = "local"
    """Where producers run: in this process, or on the workers of a Ray cluster."""
    ray_address: str | None = None
    """Such as ``auto`` or ``ray://head:10001``; by default ``$RAY_ADDRESS``, else a cluster on this machine."""
    min_workers: int = Field(default=1, ge=1)
    max_workers: int = Field(default=2, ge=1)
    """More than ``min_workers`` are started while work is waiting."""
    cpus_per_worker: float = Field(default=1.0, ge=0)
    gpus_per_worker: float = Field(default=0.0, ge=0)
    lock_seconds: float = Field(default=600.0, ge=0)
    """How long to wait for another run of the same view to end."""


class FeatureComputeEngine(LocalComputeEngine):  # type: ignore[misc]  # Feast ships no types
    """Computes the views that carry a ``recsys_llm`` tag, and copies the rows of others online as Feast does."""

    def __init__(self, **kwargs: Any) -> None:
        # Feast hands over every key of `batch_engine`, also those that the base class doesn't know.
        known = FeatureComputeEngineConfig.model_fields
        self.settings = FeatureComputeEngineConfig(**{key: kwargs.pop(key) for key in known if key in kwargs})
        super().__init__(**kwargs)

    def _materialize_one(
        self, registry: BaseRegistry, task: MaterializationTask, **kwargs: Any
    ) -> LocalMaterializationJob:
        view = task.feature_view
        job = f"{view.name}-{task.start_time}-{task.end_time}"
        producer, started = COPIED, time.perf_counter()
        configure_logs()
        try:
            tag = ProducerTag.of(view.name, view.tags)
            producer = producer if tag is None else tag.producer
            interval = _interval(task)
            if tag is not None:
                click.echo(str(self._compute(view, tag, *interval)))
                ledger = partial(open_ledger, load_config(self.repo_config.repo_path))
                keep_intervals(registry, str(self.repo_config.registry.path), view, ledger)
            elif is_copied(task):
                written = copy_rows(self, registry, task)
                _echo_copied(view.name, written)
                seconds, repository = time.perf_counter() - started, self.repo_config.repo_path
                report_copied(self.repo_config.project, repository, view.name, written, seconds, interval)
            else:
                return super()._materialize_one(registry, task, **kwargs)
        except Exception as error:  # noqa: BLE001  whatever it is, Feast must see it and leave its watermark alone
            report_failure(self.repo_config.project, self.repo_config.repo_path, view.name, producer, error)
            return LocalMaterializationJob(job_id=job, status=MaterializationJobStatus.ERROR, error=error)
        return LocalMaterializationJob(job_id=job, status=MaterializationJobStatus.SUCCEEDED)

    def _compute(self, view: FeatureView, tag: ProducerTag, start: datetime, end: datetime) -> Summary:
        config = load_config(self.repo_config.repo_path)
        producer = open_producer(view.name, tag, config, device=self._device_here())
        check_vectors(view, producer.manifest)
        ledger = open_ledger(config)
        try:
            if start > BEGINNING and not ledger.parts(view.name):
                click.echo(f"{view.name}: first run; rows stamped at or before {start} are left out")

            def count() -> int:
                return plan(view.name, producer, ledger, start, end, with_cost=False).computed

            publish = OnlinePublisher(self.repo_config, self.online_store, view)
            with (
                online_run(self.online_store, self.repo_config, view.name) as store,
                _progress(count, view.name) as advance,
            ):
                summary = produce(
                    view.name,
                    producer,
                    ledger,
                    Parts(parts_directory(view, config.root), view.name, producer.manifest),
                    publish,
                    store=store,
                    start=start,
                    end=end,
                    advance=advance,
                    lock_seconds=self.settings.lock_seconds,
                    execute=self._executor(view.name, tag, config, producer),
                )
            _echo_older(view.name, publish.written)
            report_run(self.repo_config.project, config, tag, summary, start, end)
            return summary
        finally:
            ledger.close()

    def _executor(self, view: str, tag: ProducerTag, config: Config, producer: Producer) -> RayExecutor | None:
        settings = self.settings
        if settings.executor == "local":
            return None
        pool = RayPool(
            address=settings.ray_address,
            min_workers=settings.min_workers,
            max_workers=max(settings.min_workers, settings.max_workers),
            cpus_per_worker=settings.cpus_per_worker,
            gpus_per_worker=settings.gpus_per_worker,
        )
        arguments = (view, tag, worker_config(config), settings.device)
        return RayExecutor(view, pool, ComputeWorker, arguments, producer.manifest["fingerprint"])

    def _device_here(self) -> str:
        """Return where this process computes: with Ray it only prepares, and leaves the GPU to a worker."""
        return self.settings.device if self.settings.executor == "local" else "cpu"


def _echo_copied(view: str, written: Written) -> None:
    click.echo(f"{view}: {written.newer + written.equal:,} rows copied online")
    _echo_older(view, written)


def _echo_older(view: str, written: Written) -> None:
    if written.older:
        click.echo(f"{view}: {written.older:,} rows left out, since the online store holds newer ones")


def parts_directory(view: FeatureView, root: Path) -> Path:
    """Return the directory that a computed view's source names.

    Files are written and removed there, and the name comes from the registry: so it has to lie in the repository.

    Parameters
    ----------
    root
        The feature repository.

    Raises
    ------
    ConfigError
        The view is no plain one, its source is no directory of parquet parts, or it lies outside ``root``, links
        followed.
    """
    source = view.batch_source
    if type(view) is not FeatureView or not isinstance(source, FileSource):
        raise ConfigError(
            f"view {view.name}: a computed view must be a plain FeatureView over a FileSource, found "
            f"{type(view).__name__} over {type(source).__name__}"
        )
    if "://" in source.path or source.path.endswith(".parquet") or not Path(source.path).is_absolute():
        raise ConfigError(
            f"view {view.name}: its source must be an absolute path of a local directory, found {source.path!r}"
        )
    directory, inside = Path(source.path), root.resolve()
    found = directory.resolve()
    if found == inside or not found.is_relative_to(inside):
        raise ConfigError(
            f"view {view.name}: expected its parts in a directory of this repository, {inside}, found {directory}"
            f"{'' if found == directory else f' (which is {found})'}, outside of it; nothing was read or written. "
            "Correct data_sources.py and run `feast apply`; if it is right there, the registry is another "
            "repository's, or somebody changed the row"
        )
    return directory


def _interval(task: MaterializationTask) -> tuple[datetime, datetime]:
    if task.disable_event_timestamp:
        return datetime(1, 1, 2, tzinfo=UTC), now()
    start, end = task.start_time.astimezone(UTC), task.end_time.astimezone(UTC)
    if end > now() + FUTURE_TOLERANCE:
        raise ConfigError(
            f"the end {end} lies in the future: Feast would take all until then for done, and leave out what comes in; "
            "materialise up to now"
        )
    return start, end


@contextmanager
def _progress(total: Callable[[], int], name: str) -> Iterator[Callable[[int], None] | None]:
    """Show a bar on a terminal; say nothing elsewhere, and don't spend time counting."""
    if not sys.stderr.isatty():
        yield None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.speed:,.0f} rows/s"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(name, total=total())
        yield lambda rows: bar.advance(task, rows)
