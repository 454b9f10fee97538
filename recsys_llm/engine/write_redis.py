"""Feast's Redis layout, written by one compare-and-set on the server for each row.

Feast reads the stored times, compares them here, and writes: a writer in between is overwritten. The script below
compares and writes in one step, and in one round trip for many rows. Layout: one hash for each entity key; a field for
each feature, and one for the view's time.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from itertools import chain
from typing import Any

from feast import FeatureView, RepoConfig
from feast.infra.online_stores.helpers import _mmh3, compute_versioned_name
from feast.infra.online_stores.redis import RedisOnlineStore
from google.protobuf.timestamp_pb2 import Timestamp  # type: ignore[import-untyped]
from redis.exceptions import RedisError

from recsys_llm.engine.rows import Rows, Written
from recsys_llm.errors import StoreError

ROWS_PER_TRIP = 512
"""Under a megabyte of 384-d vectors: one round trip stays far below any timeout."""

NEWER, EQUAL, OLDER = 0, 1, 2

SCRIPT = b"""
-- KEYS: the entity's hash. ARGV: seconds to live (0: for ever), field of the time, the time, then fields and values.
-- A time is a serialised protobuf Timestamp: 08 <seconds> 10 <nanoseconds>, each left out where it is 0.
local function varint(raw, at)
  local groups = {}
  repeat
    local byte = string.byte(raw, at)
    at = at + 1
    groups[#groups + 1] = byte % 128
  until byte < 128
  -- Ten groups are a negative number: its complement is small enough for Lua's doubles, the number itself isn't.
  local negative = #groups == 10
  local value, unit = 0, 1
  for place = 1, negative and 9 or #groups do
    value = value + (negative and 127 - groups[place] or groups[place]) * unit
    unit = unit * 128
  end
  return negative and -value - 1 or value, at
end

local function time(raw)
  local found, at = {[8] = 0, [16] = 0}, 1
  while at <= #raw do
    local tag = string.byte(raw, at)
    found[tag], at = varint(raw, at + 1)
  end
  return found[8], found[16]
end

local outcome = 0
local stored = redis.call('HGET', KEYS[1], ARGV[2])
if stored == ARGV[3] then
  outcome = 1
elseif stored then
  local seconds, nanos = time(stored)
  local new_seconds, new_nanos = time(ARGV[3])
  if new_seconds < seconds or (new_seconds == seconds and new_nanos < nanos) then
    return 2
  end
end
redis.call('HSET', KEYS[1], unpack(ARGV, 2))
if ARGV[1] ~= '0' then
  redis.call('EXPIRE', KEYS[1], ARGV[1])
end
return outcome
"""
SHA = hashlib.sha1(SCRIPT, usedforsecurity=False).hexdigest()


class RedisWriter:
    """Writes over Feast's own client: its TLS, password and database."""

    def __init__(self, config: RepoConfig, store: RedisOnlineStore, view: FeatureView) -> None:
        self._config = config
        self._store = store
        self._view = view

    def write(self, rows: Rows) -> Written:
        """Write rows, each unless Redis holds a newer one; an expiry starts anew with each row that is written.

        Raises
        ------
        StoreError
            Redis failed, or refuses scripts.
        """
        name = compute_versioned_name(self._view, self._config.registry.enable_online_feature_view_versioning)
        head = (self._config.online_store.key_ttl_seconds or 0, f"_ts:{name}")
        project = self._config.project.encode("utf-8")
        keys = [key + project for key in rows.keys]
        stamps = [_stamp(micros) for micros in rows.micros.tolist()]
        fields = [_mmh3(f"{name}:{feature}") for feature in rows.values]
        values = list(zip(*rows.values.values(), strict=True)) or [()] * len(keys)
        outcomes: Counter[int] = Counter()
        for start in range(0, len(keys), ROWS_PER_TRIP):
            some = slice(start, start + ROWS_PER_TRIP)
            commands = [
                (key, *head, stamp, *chain.from_iterable(zip(fields, row, strict=True)))
                for key, stamp, row in zip(keys[some], stamps[some], values[some], strict=True)
            ]
            outcomes.update(self._send(commands))
        return Written(outcomes[NEWER], outcomes[EQUAL], outcomes[OLDER])

    def _send(self, commands: list[tuple[Any, ...]]) -> list[int]:
        client = self._store._get_client(self._config.online_store)
        try:
            with client.pipeline(transaction=False) as pipe:
                # On the same connection and before its use: a server that was restarted has forgotten it.
                pipe.script_load(SCRIPT)
                for command in commands:
                    pipe.evalsha(SHA, 1, *command)
                return list(pipe.execute()[1:])
        except RedisError as error:
            raise StoreError(
                f"view {self._view.name}: Redis: {type(error).__name__}: {error}; check that it is up, has memory "
                "left, and lets this user run SCRIPT LOAD and EVALSHA; then materialise again"
            ) from error


def _stamp(micros: int) -> bytes:
    seconds, rest = divmod(micros, 1_000_000)
    stamp: bytes = Timestamp(seconds=seconds, nanos=1_000 * rest).SerializeToString()
    return stamp
