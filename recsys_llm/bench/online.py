"""``recsys-llm bench online``: one request against plain Feast, and against the store's own speed."""

from __future__ import annotations

import sqlite3
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from recsys_llm import schema
from recsys_llm.bench.cold_start import measure_cold_start
from recsys_llm.bench.online_world import World, build_world, drop_world, world_of
from recsys_llm.bench.redis_server import redis_server
from recsys_llm.bench.report import report
from recsys_llm.bench.timing import interleaved
from recsys_llm.errors import RetrievalError
from recsys_llm.retrieval import CacheSettings, FeatureBatch, FeatureClient
from recsys_llm.retrieval.feast_layout import is_redis, is_sqlite
from recsys_llm.retrieval.online import open_reader
from recsys_llm.retrieval.service import Feature
from recsys_llm.retrieval.stored import Kind
from recsys_llm.timestamps import BEGINNING

TARGETS: Mapping[str, float] = {"redis": 15.0, "sqlite": 6.5}
"""How many times faster than Feast a request of 500 candidates must be, by store."""
WARM = 80.0
"""The same for a request whose items are in the cache, on Redis."""
CACHE_BYTES = 64 * 2**20
COLD_START_ITEMS = 500
"""Candidates at most of a fresh process's first request: it is measured for its imports, not for its arrays."""
ELSEWHERE = 0.7
"""At other numbers of candidates the ratios hold within 30%."""

Arrays = dict[str, Any]
"""Full feature name to a float32 array, or a list for strings and lists."""
Sides = dict[str, Callable[[], Any]]


def bench_online(*, store: str, candidates: int, runs: int, redis_url: str | None = None) -> dict[str, Any]:
    """Time requests in a temporary repository with a real store.

    Parameters
    ----------
    store
        ``redis`` or ``sqlite``.
    redis_url
        A Redis to use; None: a private one is started.

    Raises
    ------
    ConfigError
        There is no Redis to start.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="recsys_llm_bench_")))
        if store == "redis" and redis_url is None:
            redis_url = stack.enter_context(redis_server())
        world = build_world(folder, items=candidates, store=store, redis_url=redis_url)
        stack.callback(drop_world, world)
        return measure(world, candidates=candidates, runs=runs)


def bench_repository(repository: Path, *, candidates: int, runs: int, config_file: str | None = None) -> dict[str, Any]:
    """Time requests in a materialised repository, on its own store.

    Raises
    ------
    DataError
        The repository holds no materialised users and items, or fewer items than candidates.
    """
    return measure(world_of(repository, candidates, config_file), candidates=candidates, runs=runs)


def measure(world: World, *, candidates: int, runs: int) -> dict[str, Any]:
    """Time one user and N candidates, all features as arrays: ``FeatureClient``, Feast and the bare store, in turns.

    Raises
    ------
    RetrievalError
        The answers differ: their times would say nothing.
    """
    items = world.items[:candidates]
    cache = CacheSettings(max_bytes=CACHE_BYTES)
    with ExitStack() as stack:
        # Feast doesn't look at the ttl online, so here nothing is ever past it.
        client = stack.enter_context(FeatureClient(store=world.store, now=lambda: BEGINNING))
        caching = stack.enter_context(FeatureClient(store=world.store, now=lambda: BEGINNING, item_cache=cache))
        service = client.resolve(world.service)
        features = {entity: [f for view in service.of(entity) for f in view.features] for entity in schema.JOIN_KEYS}

        def ours() -> Arrays:
            return _arrays_of(client.lookup(world.user, items, service=world.service), features)

        def warm() -> Arrays:
            return _arrays_of(caching.lookup(world.user, items, service=world.service), features)

        sides: Sides = {
            "lookup": ours,
            "lookup_warm": warm,
            "feast": lambda: _feasts(world, items, features),
            **_raw(world, client, items, stack),
        }
        expected = sides["feast"]()
        for name, side in (
            ("lookup", ours),
            ("a lookup that fills the cache", warm),
            ("a lookup from the cache", warm),
        ):
            _check_equal(side(), expected, name)
        times = interleaved(sides, runs)
        peaks = {name: _peak_mib(side) for name, side in sides.items()}
        starts, start_targets = _cold_start(world, client, items, features[schema.ITEM])
    milliseconds = {name: 1000 * np.array(values) for name, values in times.items()}
    medians = {name: float(np.median(values)) for name, values in milliseconds.items()}
    results = [
        {
            "name": f"{name}_ms",
            "median": medians[name],
            "p99": float(np.percentile(values, 99)),
            "runs": runs,
            "peak_mib": peaks[name],
        }
        for name, values in milliseconds.items()
    ]
    kind = world.store.config.online_store.type
    settings = {"candidates": candidates, "store": kind, "runs": runs, "features": len(service.references)}
    targets = [*_targets(kind, candidates, milliseconds), *start_targets]
    return report("bench online", settings=settings, results=[*results, *starts], targets=targets)


def _cold_start(
    world: World, client: FeatureClient, items: Sequence[str], features: Sequence[Feature]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    vector = next((feature.column for feature in features if feature.kind is Kind.VECTOR), None)
    served = is_redis(world.store.config) or is_sqlite(world.store.config)
    return measure_cold_start(world, client, items[:COLD_START_ITEMS], vector) if served and vector else ([], [])


def _targets(store: str, candidates: int, milliseconds: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return ratios of medians; ``lowest`` and ``highest`` are quartiles of the ratios of single turns."""
    least = TARGETS.get(store)
    found = []
    if least is not None:
        least *= 1 if candidates == 500 else ELSEWHERE
        found.append(_ratio("ratio_to_feast", milliseconds["feast"], milliseconds["lookup"], least))
    if store == "redis":
        share = 1 if candidates == 500 else ELSEWHERE
        found.append(_ratio("ratio_to_bare_redis_py", milliseconds["raw"], milliseconds["lookup"], 1.0 * share))
        found.append(_ratio("ratio_to_feast_warm", milliseconds["feast"], milliseconds["lookup_warm"], WARM * share))
        if candidates == 500:
            value = float(np.median(milliseconds["lookup_warm"]))
            found.append({"name": "lookup_warm_ms", "target": "< 1", "value": value, "met": value < 1})
    return found


def _ratio(name: str, slow: Any, fast: Any, least: float) -> dict[str, Any]:
    value = float(np.median(slow) / np.median(fast))
    low, high = np.percentile(slow / fast, [25, 75])
    spread = {"lowest": float(low), "highest": float(high)}
    return {"name": name, "target": f">= {least:g}", "value": value, **spread, "met": value >= least}


def _arrays_of(batch: FeatureBatch, features: Mapping[str, Sequence[Feature]]) -> Arrays:
    """Return the user's features of one row, and the candidates' of N."""
    arrays: Arrays = {}
    for feature in features[schema.USER]:
        values = batch.user.stored(feature.column).values
        arrays[feature.column] = values if isinstance(values, np.ndarray) else values.to_pylist()
    for feature in features[schema.ITEM]:
        if feature.kind is Kind.VECTOR:
            arrays[feature.column] = batch.vector(feature.column)
        elif feature.kind is Kind.SCALAR:
            arrays[feature.column] = batch.scalar(feature.column)
        else:
            arrays[feature.column] = batch.to_pylist(feature.column)
    return arrays


def _feasts(world: World, items: Sequence[str], features: Mapping[str, Sequence[Feature]]) -> Arrays:
    """Return the same by two ``get_online_features`` calls."""
    arrays: Arrays = {}
    for entity, keys in ((schema.USER, [world.user]), (schema.ITEM, items)):
        references = [feature.column.replace("__", ":", 1) for feature in features[entity]]
        rows = [{schema.JOIN_KEYS[entity]: key} for key in keys]
        found = world.store.get_online_features(references, rows, full_feature_names=True).to_dict()
        for feature in features[entity]:
            column = found[feature.column]
            if feature.kind is Kind.VECTOR:
                arrays[feature.column] = _stacked(column, feature)
            elif feature.kind is Kind.SCALAR:
                arrays[feature.column] = np.asarray(column, np.float32)
            else:
                arrays[feature.column] = column
    return arrays


def _stacked(column: Sequence[Any], feature: Feature) -> Any:
    if feature.storage is not None:
        width = feature.storage.width
        missing = bytes(width)
        packed = b"".join([missing if value is None else value for value in column])
        vectors = feature.storage.decode(np.frombuffer(packed, np.uint8).reshape(len(column), width))
        vectors[[value is None for value in column]] = np.nan
        return vectors
    if None not in column:
        return np.asarray(column, np.float32)
    length = next((len(value) for value in column if value is not None), 0)
    return np.asarray([[np.nan] * length if value is None else value for value in column], np.float32)


def _check_equal(one: Arrays, other: Arrays, name: str) -> None:
    for column, values in one.items():
        expected = other[column]
        if isinstance(values, np.ndarray):
            same = values.shape == expected.shape and np.array_equal(values, expected, equal_nan=True)
        else:
            same = values == expected
        if not same:
            raise RetrievalError(f"bench online: {name} and Feast differ in {column}; times would say nothing")


def _raw(world: World, client: FeatureClient, items: Sequence[str], stack: ExitStack) -> Sides:
    """Return the bare store: the same bytes fetched, and nothing made of them."""
    config, service = world.store.config, client.resolve(world.service)
    asked = [(service.of(schema.USER), (world.user,)), (service.of(schema.ITEM), tuple(items))]
    if is_redis(config):
        reader: Any = open_reader(world.store)
        commands = [
            (key, list(reader.commands(views).fields))
            for views, ids in asked
            for key in reader.commands(views).key.keys(ids)
        ]
        redis = world.store.provider.online_store._get_client(config.online_store)

        def hmget() -> Any:
            with redis.pipeline(transaction=False) as pipe:
                for key, fields in commands:
                    pipe.hmget(key, fields)
                return pipe.execute()

        return {"raw": hmget}
    if is_sqlite(config):
        reader = open_reader(world.store)
        connection = sqlite3.connect(f"{reader.path.as_uri()}?mode=ro", uri=True)
        stack.callback(connection.close)
        queries = [
            (
                f'SELECT entity_key, feature_name, value, event_ts FROM "{layout.table}" '
                f"WHERE entity_key IN ({', '.join('?' * len(ids))})",
                layout.key.keys(ids),
            )
            for views, ids in asked
            for layout in map(reader.layout, views)
        ]
        return {"raw": lambda: [connection.execute(query, keys).fetchall() for query, keys in queries]}
    return {}


def _peak_mib(side: Callable[[], Any]) -> float:
    """Return the memory that Python and NumPy hold at most for one request, beyond what they held before."""
    tracemalloc.start()
    try:
        kept = side()
        peak = tracemalloc.get_traced_memory()[1]
        del kept
    finally:
        tracemalloc.stop()
    return peak / 2**20
