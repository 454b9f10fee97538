"""Replies of one shape, read in place: what hiredis gives, or left to it; nothing is waited for that is not owed."""

from __future__ import annotations

import uuid

import hiredis
import numpy as np
import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_llm import schema
from recsys_llm.errors import LayoutError
from recsys_llm.retrieval import FeatureClient, redis_exchange
from recsys_llm.retrieval.decode import decode_timestamps
from recsys_llm.retrieval.redis_exchange import exchange_alike
from recsys_llm.retrieval.reply_table import EqualValues, ReplyTable, read_table
from recsys_llm.retrieval.service import View
from tests.retrieval.feast_repository import EVERYTHING, Repository, hours, online_config
from tests.retrieval.online_rows import NOW, vector
from tests.retrieval.test_redis_exchange import hmget


def reply(*values):
    parts = [b"$-1\r\n" if value is None else b"$%d\r\n%s\r\n" % (len(value), value) for value in values]
    return b"*%d\r\n" % len(values) + b"".join(parts)


class Socket:
    """Gives bytes in pieces, and fails where more is asked for than was sent."""

    def __init__(self, sent, pieces):
        self.rest, self.pieces = sent, pieces

    def receive(self, buffer):
        assert self.rest, "waits for what nobody owes"
        count = min(len(buffer), len(self.rest), next(self.pieces))
        buffer[:count], self.rest = self.rest[:count], self.rest[count:]
        return count


def pieces_of(sizes):
    while True:
        yield from sizes


values = st.one_of(st.none(), st.binary(max_size=12), st.just(b"\r\n*2\r\n$1\r\na\r\n"))
replies = st.one_of(
    st.tuples(values, values).map(lambda pair: reply(*pair)),
    st.sampled_from([b"-ERR wrong\r\n", b"*-1\r\n", b":7\r\n", b">2\r\n$1\r\na\r\n*1\r\n$1\r\nb\r\n"]),
)
alike = st.tuples(st.binary(min_size=3, max_size=3), st.binary(min_size=9, max_size=9)).map(lambda pair: reply(*pair))


@settings(max_examples=300)
@given(
    st.lists(alike, min_size=1, max_size=20),
    st.lists(replies, max_size=3),
    st.lists(alike, max_size=5),
    st.lists(st.integers(1, 200), min_size=1, max_size=4),
)
def test_any_replies_in_any_pieces(first, others, last, sizes):
    sent = first + others + last
    socket = Socket(b"".join(sent), pieces_of(sizes))
    table, rest = read_table(socket.receive, len(sent), 2)
    if table is None:
        assert bytes(rest) + socket.rest == b"".join(sent)  # whoever parses it has all of it
        return
    assert table.table.tobytes() == b"".join(sent)
    assert bytes(rest) == socket.rest == b""
    reader = hiredis.Reader()
    reader.feed(b"".join(sent))
    expected = [reader.gets() for _ in sent]
    assert [list(row) for row in zip(*table.columns(), strict=True)] == expected


def test_what_comes_behind_is_handed_back():
    sent = [reply(b"abc", b"d")] * 4
    table, rest = read_table(Socket(b"".join(sent), pieces_of([1000])).receive, 3, 2)
    assert table is not None
    assert [column[1:] for column in table.columns()] == [[b"abc"] * 2, [b"d"] * 2]
    assert bytes(rest) == sent[3]


@pytest.mark.parametrize("protocol", [2, 3])
def test_on_a_server(redis_url, protocol):
    prefix = uuid.uuid4().hex.encode()
    with redis.Redis.from_url(redis_url, protocol=protocol) as client:
        for number in range(100):
            client.hset(prefix + b"%d" % number, mapping={"f": np.random.bytes(1537), "g": b"%05d" % number})
        client.set(prefix + b"text", "no hash")
        packed = [hmget(prefix + b"%d" % number, b"f", b"g") for number in range(100)]
        other = hmget(prefix + b"7", b"g")
        expected = redis_exchange.exchange(client, b"".join(packed), 100)

        def ask(*commands):
            return exchange_alike(client, b"".join([*commands, other]), (len(commands), 1), 2)

        for _ in range(2):
            table, others = ask(*packed)
            assert isinstance(table, ReplyTable)
            assert [list(row) for row in zip(*table.columns(), strict=True)] == expected
            assert others == [[b"00007"]]
        found, others = ask(*packed[:50], hmget(prefix + b"nobody", b"f", b"g"), *packed[50:])
        assert found == [*expected[:50], [None, None], *expected[50:]]
        assert others == [[b"00007"]]
        with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
            ask(*packed, hmget(prefix + b"text", b"f", b"g"))
        assert ask(*packed)[1] == [[b"00007"]]  # the refusal left the connection in step


def test_a_lookup_is_the_same_with_and_without(tmp_path, redis_url, monkeypatch):
    online = online_config("redis", tmp_path, redis_url)
    repository = Repository(tmp_path, online=online, project=f"p{uuid.uuid4().hex[:8]}")
    rng, items = np.random.default_rng(1), [f"i{number}" for number in range(40)]
    rows = [{"item_id": item, "at": hours(place), "embedding": vector(rng)} for place, item in enumerate(items)]
    repository.write_online(schema.ITEM_TEXT_EMBEDDING, [row | {"row_id": 1} for row in rows])
    stats = [{"item_id": item, "at": hours(1), "n_events": 3, "mean_rating": 0.5, "category": "a"} for item in items]
    repository.write_online(schema.ITEM_STATS, stats)
    repository.write_online(
        "item_notes", [{"item_id": item, "at": hours(1), "words": ["a"], "counts": [1]} for item in items]
    )
    tables = []
    split = redis_exchange.read_table

    def reading(*arguments):
        found = split(*arguments)
        tables.append(found[0])
        return found

    monkeypatch.setattr(redis_exchange, "read_table", reading)
    with FeatureClient(store=repository.store, now=lambda: NOW) as client:
        ours = [client.lookup("u1", asked, service=EVERYTHING) for asked in (items, [*items, "unknown"])]
        assert [table is not None for table in tables] == [True, False]
        monkeypatch.setattr(redis_exchange, "ALIKE", 10**9)
        parsed = [client.lookup("u1", asked, service=EVERYTHING) for asked in (items, [*items, "unknown"])]
    assert len(tables) == 2
    for one, other in zip(ours, parsed, strict=True):
        assert one.pairwise.tobytes() == other.pairwise.tobytes()
        assert {name: one.to_pylist(name) for name in one.columns} == {n: other.to_pylist(n) for n in other.columns}
        for view, stamps in other.item.timestamps.items():
            assert one.item.timestamps[view].tolist() == stamps.tolist()
            assert one.status(view).tolist() == other.status(view).tolist()


@settings(max_examples=300)
@given(st.integers(0, 14).flatmap(lambda width: st.lists(st.binary(min_size=width, max_size=width), min_size=9)))
def test_times_of_equal_length(stamps):
    view, ids = View("v", "item", 0, (), False, None, None), [str(row) for row in range(len(stamps))]
    table = EqualValues(np.frombuffer(b"".join(stamps), np.uint8).reshape(len(stamps), -1))
    found = []
    for values in (table, stamps):
        try:
            found.append(decode_timestamps(values, view, ids).tolist())
        except LayoutError as error:
            found.append(f"{type(error).__name__}: {error}")
    assert found[0] == found[1]


@given(st.lists(st.integers(0, 2**35 - 1), min_size=9, max_size=20))
def test_times_in_whole_seconds(seconds):
    from google.protobuf.timestamp_pb2 import Timestamp

    view, stamps = (
        View("v", "item", 0, (), False, None, None),
        [Timestamp(seconds=s).SerializeToString() for s in seconds],
    )
    wide = [stamp for stamp in stamps if len(stamp) == 6]
    table = EqualValues(np.frombuffer(b"".join(wide), np.uint8).reshape(len(wide), 6))
    expected = [second * 1_000_000 for second, stamp in zip(seconds, stamps, strict=True) if len(stamp) == 6]
    assert decode_timestamps(table, view, [""] * len(wide)).tolist() == expected
    assert decode_timestamps(stamps[:3], view, [""] * 3).tolist() == [second * 1_000_000 for second in seconds[:3]]
