"""``recsys-llm quickstart``: raw tables in, ranked items out, with stock Feast commands."""

from __future__ import annotations

import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.markup import escape

from recsys_llm import schema
from recsys_llm.bench.report import write_report
from recsys_llm.commands.data import check_data, choose_data
from recsys_llm.commands.feast_cli import run_feast
from recsys_llm.commands.quickstart_report import BASELINE, WITH_FEATURES, quickstart_report, show_results, show_way_on
from recsys_llm.commands.repository import init_repository
from recsys_llm.commands.steps import Steps, show_training
from recsys_llm.commands.train import train_sequence_model
from recsys_llm.commands.world import World
from recsys_llm.config import load_config
from recsys_llm.errors import ConfigError, DataError
from recsys_llm.producers import open_ledger
from recsys_llm.ranking.cooccurrence import CooccurrenceModel
from recsys_llm.ranking.evaluation import Evaluation, evaluate_full_catalogue
from recsys_llm.ranking.examples import sample_examples
from recsys_llm.ranking.ranker import Ranker
from recsys_llm.ranking.training import RankerConfig
from recsys_llm.retrieval import FeatureClient
from recsys_llm.seqgan import Checkpoint, SeqGANConfig, evaluate_next_items
from recsys_llm.sources import tables
from recsys_llm.timestamps import from_micros, now

MARKER = ".recsys_llm_quickstart"
SEQUENCE_MODEL = "seqgan_v1"
BEGINNING_OF_TIME = "1900-01-01T00:00:00"
TRAIN_SHARE, RANKER_SHARE = 0.6, 0.8
MAX_POSITIVES = 15_000
TEST_EVENTS = 1_000
TEST_GROUPS = 5_000
LEAST_EVENTS = 100
CANDIDATES = 500
VIEWS = (
    schema.ITEM_TEXT_EMBEDDING,
    schema.USER_TEXT_EMBEDDING,
    schema.USER_NEXT_ITEMS,
    schema.USER_STATES,
    schema.ITEM_NEXT_VECTORS,
    schema.ITEM_STATS,
    schema.USER_STATS,
)


def run_quickstart(
    *, data: Path | None, workdir: Path, json_file: Path | None, seed: int, console: Console
) -> dict[str, Any]:
    """Run the whole path and return its report.

    Raises
    ------
    ConfigError
        ``workdir`` holds something that is not an earlier quickstart.
    DataError
        The data folder is inside ``workdir``, lacks a table, or has too few events to split.
    """
    steps = Steps(console)
    check_data(data, workdir=workdir)
    _prepare(workdir)
    world = _read_data(steps, data, workdir, seed)
    with steps.step("feast apply") as step:
        run_feast(world.repository, "apply")
        step.detail = f"{len(VIEWS)} feature views, 2 feature services"
    _materialize(steps, world, "item texts", schema.ITEM_TEXT_EMBEDDING)
    checkpoint = _train_seqgan(steps, world, seed)
    _materialize(steps, world, "materialize")
    client = FeatureClient(world.repository)
    rankers = _train_rankers(steps, world, client, seed)
    evaluation = _evaluate(steps, world, client, rankers, seed)
    next_items = _evaluate_next_items(steps, world, checkpoint, seed)
    _show_lookup(steps, world, client, rankers[WITH_FEATURES], seed)
    for name, ranker in rankers.items():
        ranker.save(workdir / "models" / f"ranker_{name}")
    content = quickstart_report(steps, world, checkpoint, evaluation, next_items, seed)
    write_report(json_file or workdir / "quickstart.json", content)
    show_results(console, content)
    show_way_on(console, world, json_file or workdir / "quickstart.json")
    return content


def _prepare(workdir: Path) -> None:
    if workdir.exists() and any(workdir.iterdir()):
        if not (workdir / MARKER).is_file():
            raise ConfigError(f"{workdir}: holds files that no quickstart made; name another --workdir")
        shutil.rmtree(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / MARKER).touch()


def _read_data(steps: Steps, data: Path | None, workdir: Path, seed: int) -> World:
    with steps.step("data") as step:
        choice = choose_data(data, workdir=workdir, seed=seed)
        if choice.warning:
            steps.console.print(f"[bold yellow]WARNING[/] {escape(choice.warning)}")
        repository = init_repository(workdir.resolve() / "feature_repo", data=choice.path)
        config = load_config(repository)
        item_batches, event_batches = list(tables.items(config)), list(tables.interactions(config, order_by="time"))
        found = sum(batch.num_rows for batch in event_batches)
        if not item_batches or found < LEAST_EVENTS:
            raise DataError(
                f"{choice.path}: expected items and {LEAST_EVENTS} usable events to split, found {found} events"
            )
        items, interactions = pa.Table.from_batches(item_batches), pa.Table.from_batches(event_batches)
        times = interactions.column(schema.EVENT_TIMESTAMP).cast(pa.int64()).to_numpy()
        cuts = [from_micros(times[int(len(times) * share)]) for share in (TRAIN_SHARE, RANKER_SHARE)]
        step.rows = interactions.num_rows
        users = pc.count_distinct(interactions.column(schema.USER_ID)).as_py()
        step.detail = (
            f"{choice.name}: {len(set(items.column(schema.ITEM_ID).to_pylist())):,} items, {users:,} users; "
            f"train before {cuts[0]:%Y-%m-%d}, ranker to {cuts[1]:%Y-%m-%d}, then test"
        )
    return World(choice, repository, config, items, interactions, cuts[0], cuts[1])


def _materialize(steps: Steps, world: World, name: str, *views: str) -> None:
    # On a terminal the engine shows a bar of its own, which a spinner would disturb.
    with steps.step(name, spinner=False) as step:
        selected = [argument for view in views for argument in ("-v", view)]
        before = _recorded(world)
        end = now().replace(tzinfo=None, microsecond=0).isoformat()
        printed = run_feast(world.repository, "materialize", BEGINNING_OF_TIME, end, *selected)
        step.rows = _recorded(world) - before
        step.detail = "\n               ".join(
            line for line in printed if line.startswith(tuple(f"{v}:" for v in VIEWS))
        )


def _recorded(world: World) -> int:
    ledger = open_ledger(world.config)
    try:
        return sum(ledger.count(view) for view in VIEWS)
    finally:
        ledger.close()


def _train_seqgan(steps: Steps, world: World, seed: int) -> Checkpoint:
    with steps.step_with_bar("SeqGAN") as (step, bar):
        settings = SeqGANConfig(seed=seed)
        checkpoint = train_sequence_model(
            world.repository, SEQUENCE_MODEL, until=world.train_until, settings=settings, progress=show_training(bar)
        )
        step.rows, step.unit = len(_before(world.interactions, world.train_until)), "events"
        scores = ", ".join(f"{name} {score['ndcg_at_10']:.4f}" for name, score in checkpoint.manifest["scores"].items())
        step.detail = f"validation NDCG@10: {scores}; chosen: {checkpoint.manifest['chosen']}"
    return checkpoint


def _before(interactions: pa.Table, until: datetime) -> pa.Table:
    times = interactions.column(schema.EVENT_TIMESTAMP)
    return interactions.filter(pc.less(times, pa.scalar(until, times.type)))


def _train_rankers(steps: Steps, world: World, client: FeatureClient, seed: int) -> dict[str, Ranker]:
    with steps.step("training set") as step:
        examples = sample_examples(
            world.interactions,
            world.items,
            start=world.train_until,
            end=world.rank_until,
            max_positives=MAX_POSITIVES,
            seed=seed,
        )
        train = client.training_set(examples, service=schema.RANKER)
        step.rows, step.unit = len(examples), "pairs"
        step.detail = f"{examples.attrs['positives']:,} events, each with its negatives"
    with steps.step("rankers") as step:
        cooccurrence = CooccurrenceModel.fit(_before(world.interactions, world.train_until), world.train_until)
        settings = RankerConfig(seed=seed)
        rankers = {
            name: Ranker.fit(train, cooccurrence, settings, learned=name == WITH_FEATURES)
            for name in (BASELINE, WITH_FEATURES)
        }
        step.rows, step.unit = 2 * len(examples), "pairs"
        step.detail = ", ".join(f"{name}: {len(ranker.columns)} columns" for name, ranker in rankers.items())
    return rankers


def _evaluate(steps: Steps, world: World, client: FeatureClient, rankers: dict[str, Ranker], seed: int) -> Evaluation:
    with steps.step_with_bar("evaluate") as (step, bar):
        # Counts are cheap to keep fresh, so a served ranker has them up to T2: a stale baseline would flatter the rest.
        counts = CooccurrenceModel.fit(_before(world.interactions, world.rank_until), world.rank_until)
        task = bar.add_task("test events", total=TEST_EVENTS)
        evaluation = evaluate_full_catalogue(
            client,
            {name: ranker.refreshed(counts) for name, ranker in rankers.items()},
            world.interactions,
            world.items,
            service=schema.RANKER,
            start=world.rank_until,
            events=TEST_EVENTS,
            seed=seed,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
        step.rows, step.unit = int(evaluation.events["candidates"].sum()), "pairs"
        step.detail = (
            f"{len(evaluation.events):,} of {evaluation.period_events:,} test events against the full catalogue; "
            f"{evaluation.not_in_catalogue:,} were of items that were not in the catalogue before the day"
        )
    return evaluation


def _evaluate_next_items(steps: Steps, world: World, checkpoint: Checkpoint, seed: int) -> dict[str, Any]:
    with steps.step("next items") as step:
        times = world.interactions.column(schema.EVENT_TIMESTAMP)
        scores: dict[str, Any] = dict(
            evaluate_next_items(
                checkpoint,
                world.interactions,
                start=world.rank_until,
                end=pc.max(times).as_py(),
                largest=TEST_GROUPS,
                seed=seed,
            )
        )
        after = world.interactions.filter(pc.greater(times, pa.scalar(world.rank_until, times.type)))
        groups = after.group_by([schema.USER_ID, schema.EVENT_TIMESTAMP]).aggregate([])
        step.rows, step.unit = min(groups.num_rows, TEST_GROUPS), "groups"
    return scores | {"chosen_model": checkpoint.manifest["chosen"]}


def _show_lookup(steps: Steps, world: World, client: FeatureClient, ranker: Ranker, seed: int) -> None:
    titles = dict(zip(world.items.column(schema.ITEM_ID).to_pylist(), _titles(world.items), strict=True))
    user = world.interactions.column(schema.USER_ID)[-1].as_py()
    others = np.random.default_rng(seed).permutation(sorted(titles))[:CANDIDATES].tolist()
    with steps.step("lookup") as step:
        batch = client.lookup(user, others, service=schema.RANKER)
        scores = ranker.score(batch)
        step.rows, step.unit = len(batch), "pairs"
        step.detail = f"user {user} and {len(batch)} candidates"
    best = [others[row] for row in np.argsort(-scores, kind="stable")[:10]]
    recent = batch.user.columns[schema.feature_column(schema.USER_STATS, schema.RECENT_ITEMS)][0].as_py() or []
    predicted = batch.user.columns[schema.feature_column(schema.USER_NEXT_ITEMS, schema.ITEM_IDS)][0].as_py() or []
    for label, ids in (("recent", recent[:5]), ("predicted", predicted[:5]), ("top 10", best)):
        shown = "; ".join(escape(titles.get(item, item)) for item in ids)
        steps.console.print(f"  [bold]{label:<10}[/] {shown}", highlight=False, soft_wrap=True)


def _titles(items: pa.Table) -> list[str]:
    if "title" in items.column_names:
        return [title or "" for title in items.column("title").to_pylist()]
    return [str(item) for item in items.column(schema.ITEM_ID).to_pylist()]
