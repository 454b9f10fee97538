"""What only one online store can hold or do: altered bytes, other keys, no server."""

from __future__ import annotations

import sqlite3
import uuid
from datetime import timedelta

import pyarrow as pa
import pytest
from feast.types import Float64

from recsys_llm import schema
from recsys_llm.errors import StoreError
from recsys_llm.retrieval import FeatureClient, Status
from recsys_llm.timestamps import to_micros
from tests.retrieval.feast_repository import EVERYTHING, MOOD, PLAIN, VIEWS, Repository, hours, online_config
from tests.retrieval.online_rows import NOW, fill_online


@pytest.fixture
def client(repository):
    with FeatureClient(store=repository.store, now=lambda: NOW) as client:
        yield client


class TestSqlite:
    """What only Feast's sqlite layout can hold."""

    @pytest.fixture
    def repository(self, tmp_path):
        repository = Repository(tmp_path, online=online_config("sqlite", tmp_path))
        fill_online(repository)
        return repository

    def execute(self, repository, statement, *values):
        connection = sqlite3.connect(repository.folder / "data" / "online.db")
        with connection:
            connection.execute(statement, values)
        connection.close()

    @pytest.mark.parametrize("stored", [b"\x00\x01", b"garbage", b"\x8a"])
    def test_altered_bytes_are_named(self, repository, client, stored):
        table = '"shop_item_text_embedding_v1"'
        self.execute(repository, f"UPDATE {table} SET value = ? WHERE feature_name = 'embedding'", stored)
        with pytest.raises(StoreError, match="feature embedding, item_id='i0': expected a vector.*materialise"):
            client.lookup("u1", ["i0"], service=EVERYTHING)

    def test_truncated_bytes_are_named(self, repository, client):
        table = '"shop_item_text_embedding_v1"'
        self.execute(repository, f"UPDATE {table} SET value = substr(value, 1, length(value) - 1)")
        with pytest.raises(StoreError, match="feature embedding, item_id='i0': .*no Feast value"):
            client.lookup("u1", ["i0"], service=EVERYTHING)

    def test_a_value_of_another_type_is_named(self, repository, client):
        table = '"shop_item_stats"'
        self.execute(
            repository,
            f"UPDATE {table} SET value = (SELECT value FROM {table} WHERE feature_name = 'category' "
            "AND length(value) > 0 LIMIT 1) WHERE feature_name = 'n_events'",
        )
        with pytest.raises(StoreError, match="feature n_events, item_id='i0': expected a scalar, found .* string_val"):
            client.lookup("u1", ["i0"], service=EVERYTHING)

    def test_a_time_beyond_all_calendars(self, repository, client):
        self.execute(repository, 'UPDATE "shop_item_stats" SET event_ts = ?', 2**62)
        with pytest.raises(StoreError, match="view item_stats: a timestamp in .* is no time"):
            client.lookup("u1", ["i0"], service=EVERYTHING)

    def test_more_features_than_sqlite_joins(self, tmp_path):
        features = {f"f{number}": (Float64, pa.float64()) for number in range(130)}
        views = {schema.ITEM_STATS: (schema.ITEM, timedelta(0), features), MOOD: VIEWS[MOOD]}
        services = {PLAIN: tuple(views)}
        folder = tmp_path / "wide"
        folder.mkdir()
        repository = Repository(folder, online=online_config("sqlite", folder), views=views, services=services)
        numbers = {name: float(place) for place, name in enumerate(features)}
        repository.write_online(schema.ITEM_STATS, [{"item_id": "i", "at": hours(3), **numbers}])
        with FeatureClient(store=repository.store, now=lambda: NOW) as client:
            batch = client.lookup("u1", ["unknown", "i"], service=PLAIN)
        assert [batch.scalar(f"item_stats__{name}")[1] for name in features] == list(numbers.values())
        assert batch.status(schema.ITEM_STATS).tolist() == [Status.MISSING, Status.PRESENT]
        assert batch.item.timestamps[schema.ITEM_STATS].tolist() == [0, to_micros(hours(3))]

    def test_a_time_that_feast_could_not_read_either(self, repository, client):
        self.execute(repository, 'UPDATE "shop_item_stats" SET event_ts = ?', "yesterday")
        with pytest.raises(StoreError, match="view item_stats, item_id='i0': expected a timestamp.*'yesterday'"):
            client.lookup("u1", ["i0"], service=EVERYTHING)

    def test_no_table_and_no_file(self, repository, client):
        self.execute(repository, 'DROP TABLE "shop_item_stats"')
        with pytest.raises(StoreError, match="no such table.*feast apply"):
            client.lookup("u1", ["i0"], service=EVERYTHING)
        client.close()
        (repository.folder / "data" / "online.db").unlink()
        with pytest.raises(StoreError, match="unable to open.*feast materialize"):
            client.lookup("u1", ["i0"], service=EVERYTHING)
        assert not (repository.folder / "data" / "online.db").exists()


class TestRedis:
    """What only Redis can do."""

    @pytest.fixture
    def repository(self, tmp_path, redis_url):
        config = online_config("redis", tmp_path, redis_url)
        repository = Repository(tmp_path, online=config, project=f"p{uuid.uuid4().hex[:8]}")
        fill_online(repository)
        return repository

    def test_keys_are_feasts(self, repository):
        from feast.infra.online_stores.helpers import _redis_key
        from feast.protos.feast.types.EntityKey_pb2 import EntityKey
        from feast.protos.feast.types.Value_pb2 import Value

        from recsys_llm.retrieval.feast_layout import redis_layout
        from recsys_llm.retrieval.service import resolve

        for view in resolve(repository.store, EVERYTHING).views:
            for key in ("", "42", "ключ", "a\x00b"):
                expected = _redis_key(
                    repository.store.project,
                    EntityKey(join_keys=[view.join_key], entity_values=[Value(string_val=key)]),
                )
                assert redis_layout(repository.store.config, view).key.key(key) == expected

    def test_the_epoch_is_missing_and_times_before_it_are_not(self, repository, client):
        epoch, before = hours(0).replace(year=1970), hours(0).replace(year=1902)
        repository.write_online(schema.ITEM_STATS, [{"item_id": "epoch", "at": epoch, "n_events": 1}])
        repository.write_online(schema.ITEM_STATS, [{"item_id": "old", "at": before, "n_events": 2}])
        batch = client.lookup("u1", ["epoch", "old"], service=PLAIN)
        assert batch.status(schema.ITEM_STATS).tolist() == [Status.MISSING, Status.PRESENT]
        assert batch.scalar("item_stats__n_events")[1] == 2

    def test_a_key_of_another_type_is_refused(self, repository, client, redis_url):
        import redis

        from recsys_llm.retrieval.feast_layout import redis_layout
        from recsys_llm.retrieval.service import resolve

        view = resolve(repository.store, PLAIN).of(schema.ITEM)[0]
        with redis.Redis.from_url(redis_url) as connection:
            connection.set(redis_layout(repository.store.config, view).key.key("text"), "no hash")
        with pytest.raises(StoreError, match="Redis: ResponseError: .*WRONGTYPE"):
            client.lookup("u1", ["i0", "text", "i1"], service=PLAIN)
        # The replies after the refusal were read too: the connection is in step.
        assert client.lookup("u1", ["i0"], service=PLAIN).scalar("item_stats__n_events").tolist() == [0]

    def test_a_redis_that_is_down(self, tmp_path):
        config = {"type": "redis", "connection_string": "127.0.0.1:1,db=0,password=geheim"}
        repository = Repository(tmp_path, online=config)
        with FeatureClient(store=repository.store) as client, pytest.raises(StoreError) as caught:
            client.lookup("u1", ["i0"], service=PLAIN)
        assert "ConnectionError" in str(caught.value)
        assert "geheim" not in str(caught.value)
