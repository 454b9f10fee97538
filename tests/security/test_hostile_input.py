"""Hostile ids, columns, names and examples: an error of ours or a plain "missing"; a canary file never appears."""

from __future__ import annotations

import uuid
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import redis
import sqlalchemy as sa
from pydantic import ValidationError

from recsys_llm import schema
from recsys_llm.config import TableConfig
from recsys_llm.config.sections import Config, InteractionsConfig, ItemsConfig, SourcesConfig
from recsys_llm.errors import RecsysLLMError, RowError, SchemaError, ServiceError
from recsys_llm.retrieval import FeatureClient, Status
from recsys_llm.retrieval.examples import check_segments
from recsys_llm.sources import tables
from recsys_llm.sources.connection import quoted
from recsys_llm.sources.opening import open_source
from tests.retrieval.feast_repository import EVERYTHING, MOOD, Repository, examples, hours, online_config
from tests.retrieval.history_rows import fill

pytestmark = pytest.mark.security

NOW = hours(100)


def copy_to(canary: Path) -> str:
    """Return SQL that writes a file where DuckDB runs it."""
    return f"COPY (SELECT 1) TO '{canary}'"


def ids(canary: Path) -> dict[str, str]:
    """Return user and item ids that mean something to a shell, a path, SQL, Redis or a protocol."""
    return {
        "path": "../../x",
        "absolute path": str(canary),
        "NUL": "u0\0",
        "Redis command": f"u0\r\nCONFIG SET dir {canary.parent}\r\nSAVE\r\nFLUSHALL\r\n",
        "RESP": "*1\r\n$8\r\nFLUSHALL\r\n",
        "every key": "*",
        "a pattern": "u[0-9]?",
        "SQL": f"u0'; {copy_to(canary)}; --",
        "quoted SQL": f'u0"; {copy_to(canary)}; --',
        "union": "' UNION SELECT value FROM sqlite_master --",
        "Python": f"__import__('os').mkdir('{canary}')",
        "a template": f"{{{{ ''.__class__ }}}}${{HOME}}$(mkdir {canary})`mkdir {canary}`",
        "long": "x" * 70_000,
        "right to left": "\u202eu0",
        "composed": "u\u0030\u0301",
        "no character": "\uffff",
    }


IDS = tuple(ids(Path()))
SURROGATES = ("\ud800", "u0\udfff", "\udcff" * 3)


@pytest.fixture
def canary(tmp_path) -> Path:
    return tmp_path / "canary"


@pytest.fixture(scope="module", params=["sqlite", "redis", "guarded"])
def stored(request, tmp_path_factory):
    """A repository with a row online of one user and one item, and what is left of the server."""
    folder = tmp_path_factory.mktemp(request.param)
    url = None if request.param == "sqlite" else request.getfixturevalue("redis_url")
    made = Repository(folder, online=online_config(request.param, folder, url), project=f"p{uuid.uuid4().hex[:8]}")
    made.write_online(MOOD, [{"user_id": "u0", "at": NOW, "level": 0.5}])
    made.write_online(schema.ITEM_STATS, [{"item_id": "i0", "at": NOW, "n_events": 3, "category": "a"}])
    yield made, url


def contents(repository: Repository, url: str | None) -> object:
    if url is None:
        return (repository.folder / "data" / "online.db").read_bytes()
    with redis.Redis.from_url(url) as client:
        return {key: client.hgetall(key) for key in client.scan_iter(f"*{repository.store.project}")}


def test_the_sql_payload_is_live(canary):
    duckdb.sql(copy_to(canary))
    assert canary.exists()


@pytest.mark.parametrize("kind", IDS)
def test_hostile_ids_are_plain_ids_online(stored, canary, kind):
    repository, url = stored
    hostile, before = ids(canary)[kind], contents(*stored)
    with FeatureClient(store=repository.store, now=lambda: NOW) as client:
        batch = client.lookup(hostile, ["i0", hostile], service=EVERYTHING)
        known = client.lookup("u0", [hostile, "i0"], service=EVERYTHING)
    assert batch.status(MOOD).tolist() == [Status.MISSING] * 2
    assert batch.status(schema.ITEM_STATS).tolist() == [Status.PRESENT, Status.MISSING]
    assert known.status(MOOD).tolist() == [Status.PRESENT] * 2
    assert known.status(schema.ITEM_STATS).tolist() == [Status.MISSING, Status.PRESENT]
    assert contents(*stored) == before
    assert not canary.exists()


@pytest.mark.parametrize("kind", IDS)
def test_a_row_of_a_hostile_id_is_found_again(stored, canary, kind):
    repository, _ = stored
    hostile = f"{ids(canary)[kind]}{uuid.uuid4().hex}"
    repository.write_online(schema.ITEM_STATS, [{"item_id": hostile, "at": NOW, "n_events": 7, "category": "b"}])
    with FeatureClient(store=repository.store, now=lambda: NOW) as client:
        batch = client.lookup("u0", ["i0", hostile], service=EVERYTHING)
    assert batch.to_pylist(schema.feature_column(schema.ITEM_STATS, "n_events")) == [3, 7]
    assert not canary.exists()


@pytest.mark.parametrize("surrogate", SURROGATES, ids=ascii)
def test_lone_surrogates_are_refused(stored, surrogate):
    repository, _ = stored
    with FeatureClient(store=repository.store, now=lambda: NOW) as client:
        for user, items in ((surrogate, ["i0"]), ("u0", [surrogate])):
            with pytest.raises(RowError, match="lone surrogate"):
                client.lookup(user, items, service=EVERYTHING)
            with pytest.raises(RowError, match="lone surrogate"):
                client.training_set(examples((user, items[0], NOW)), service=EVERYTHING)


@pytest.fixture(scope="module")
def history(tmp_path_factory):
    folder = tmp_path_factory.mktemp("history")
    repository = Repository(folder, online=online_config("sqlite", folder))
    fill(repository)
    with FeatureClient(store=repository.store) as client:
        yield client


def test_hostile_ids_are_plain_ids_in_history(history, canary):
    hostile = [one for one in ids(canary).values() if "\0" not in one]
    asked = [*((one, one, hours(5)) for one in hostile), ("u0", "i0", hours(5))]
    training = history.training_set(examples(*asked), service=EVERYTHING)
    expected = [Status.MISSING] * len(hostile) + [Status.PRESENT]
    assert training.status(schema.ITEM_STATS).tolist() == expected
    assert training.status(schema.USER_NEXT_ITEMS).tolist() == expected
    assert training.to_pandas()[schema.USER_ID].tolist() == [*hostile, "u0"]
    assert not canary.exists()


def test_ids_that_pandas_would_take_for_others_are_refused(history):
    """It compares texts up to a NUL: the rows of u0 would be missing, or be those of somebody else."""
    assert pd.factorize(np.array(["u0\0x", "u0"], dtype=object))[0].tolist() == [0, 0]
    at = pd.Series(pd.to_datetime([hours(5), hours(5)], utc=True)).dt.as_unit("us")
    for place, row in enumerate((("u0\0x", "i0", hours(5)), ("u0", "i0\0", hours(5)))):
        with pytest.raises(RowError, match="row 1: expected text, found a NUL character"):
            history.training_set(examples(("u0", "i0", hours(5)), row), service=EVERYTHING)
        with pytest.raises(RowError, match=r"ids\[1\]: expected text, found a NUL character"):
            history.entity_history(("user", "item")[place], ["x", str(row[place])], at, service=EVERYTHING)
    with pytest.raises(RowError, match="row 0: expected text, found a NUL character"):
        check_segments(examples(("u0", "i0", hours(5)), segment=["a\0"]))


def test_a_string_of_sql_is_no_frame_of_examples(history, canary):
    for statement in (copy_to(canary), f"SELECT 1; {copy_to(canary)}", "", str(canary)):
        with pytest.raises(SchemaError, match="expected a pandas DataFrame, found str; a string would be run as SQL"):
            history.training_set(statement, service=EVERYTHING)
    assert not canary.exists()


def test_other_columns_of_examples_may_be_called_anything(history, canary):
    hostile = {name: [1.0] for name in ids(canary).values() if len(name) < 1000}
    asked = examples(("u0", "i0", hours(5)), **hostile)
    try:
        frame = history.training_set(asked, service=EVERYTHING).to_pandas()
    except RecsysLLMError as error:
        assert "examples" in str(error)
    else:
        pd.testing.assert_frame_equal(frame[asked.columns], asked)
    assert not canary.exists()


@pytest.mark.parametrize("name", ["../../evil", f"{EVERYTHING}'; --", "", "x" * 70_000, "a\0b", "\ud800"])
def test_a_service_of_a_hostile_name_is_unknown(history, name):
    with pytest.raises(ServiceError):
        history.training_set(examples(("u0", "i0", hours(5))), service=name)


def columns(canary: Path) -> dict[str, str]:
    return {
        "statement": f'x"; {copy_to(canary)}; --',
        "unquoted": f"x) FROM t; {copy_to(canary)}; --",
        "apostrophe": f"x'; {copy_to(canary)}; --",
        "bracket": f"x]; {copy_to(canary)}; --",
        "a function": f"x, (SELECT content FROM read_text('{canary}'))",
        "placeholder": ":x ? $1 %s %(y)s",
    }


COLUMNS = tuple(columns(Path()))


@pytest.mark.parametrize("kind", COLUMNS)
def test_source_columns_are_data(tmp_path, canary, kind):
    hostile = columns(canary)[kind]
    stamps = pa.array([hours(1), hours(2)], pa.timestamp("us", "UTC"))
    table = pa.table({hostile: ["a", "b"], "title": ["x", "y"], "event_timestamp": stamps})
    pq.write_table(table, tmp_path / "items.parquet")
    source = open_source(TableConfig(parquet="items.parquet"), tmp_path, name="items")
    read = pa.Table.from_batches(source.batches([hostile, "event_timestamp"], order_by=[hostile]))
    assert read.column(hostile).to_pylist() == ["a", "b"]
    assert source.rows([hostile], lambda batch: pc.equal(batch.column(hostile), "b")) == ["items.parquet row 1"]
    items = ItemsConfig(parquet="items.parquet", key=hostile, category=None)
    config = Config(
        sources=SourcesConfig(items=items, interactions=InteractionsConfig(parquet="none.parquet")), root=tmp_path
    )
    (batch,) = tables.items(config)
    assert batch.column(schema.ITEM_ID).to_pylist() == ["a", "b"]
    assert not canary.exists()


@pytest.mark.parametrize("kind", COLUMNS)
def test_columns_of_a_query_are_data(tmp_path, canary, kind):
    hostile = columns(canary)[kind]
    engine = sa.create_engine(f"sqlite:///{tmp_path}/shop.db")
    with engine.begin() as connection:
        name = sa.quoted_name(hostile, quote=True)
        table = sa.Table("items", sa.MetaData(), sa.Column(name, sa.String), sa.Column("at", sa.String))
        table.create(connection)
        connection.execute(table.insert(), [{hostile: "a", "at": "2024-01-01T00:00:00+00:00"}])
    engine.dispose()
    source = TableConfig(sql=f"sqlite:///{tmp_path}/shop.db", query="select * from items", timestamp="at")
    try:
        found = pa.Table.from_batches(open_source(source, tmp_path, name="items").batches([hostile]))
    except RecsysLLMError as error:
        assert "items" in str(error)
    else:
        assert found.column(hostile).to_pylist() == ["a"]
    with sa.create_engine(f"sqlite:///{tmp_path}/shop.db").connect() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(sa.table("items"))) == 1
    assert not canary.exists()


@pytest.mark.parametrize("name", ["Evil", "../x", "a b", "evil\n", "x" * 64, "1a", "", 'x"', "ключ"])
def test_names_in_the_configuration(name):
    with pytest.raises(ValidationError, match="a name must match|at most"):
        Config.model_validate(
            {
                "sources": {"items": {"parquet": "x"}, "interactions": {"parquet": "x"}},
                "text_encoders": {name: {"model": "x"}},
            }
        )
    assert schema.NAME_PATTERN.match(name) is None


def test_quoting_keeps_a_name_a_name(canary):
    for hostile in columns(canary).values():
        with duckdb.connect() as connection:
            table = connection.sql(f"SELECT 1 AS {quoted(hostile)}")
            assert table.columns == [hostile]
            found = connection.execute(f"SELECT {quoted(hostile)} FROM (SELECT 1 AS {quoted(hostile)})").fetchone()
            assert found == (1,)
    assert not canary.exists()
