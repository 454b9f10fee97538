"""Feast's Redis layout, written by one compare-and-set on the server for each row.

Feast reads the stored times, compares them here, and writes: a writer in between is overwritten. The script below
compares and writes each row in one step, many rows in a call, and many calls in a round trip. Layout: one hash for each
entity key; a field for each feature, and one for the view's time.
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

ROWS_PER_CALL = 32
"""Redis serves nobody else during a call: about a tenth of a millisecond."""
CALLS_PER_TRIP = 16
"""512 rows are under a megabyte of 384-d vectors: one round trip stays far below any timeout."""

NEWER, EQUAL, OLDER = b"012"

SCRIPT = b"""
-- KEYS: hashes of entities. ARGV: seconds to live (0: for ever), number of fields, the fields, that of the time first;
-- then for each key its values in that order. A time is a serialised protobuf Timestamp: 08 <seconds> 10 <nanos>, each
-- left out where it is 0. Returned is a digit for each key: 0: written over no row or an older one, 1: over an equal
-- one, 2: left out.
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

local function outcome(key, field, new)
  local stored = redis.call('HGET', key, field)
  if not stored then
    return 0
  elseif stored == new then
    return 1
  end
  local seconds, nanos = time(stored)
  local new_seconds, new_nanos = time(new)
  if new_seconds < seconds or (new_seconds == seconds and new_nanos < nanos) then
    return 2
  end
  return 0
end

local fields = tonumber(ARGV[2])
local record = {}
for place = 1, fields do
  record[2 * place - 1] = ARGV[2 + place]
end
local outcomes, at = {}, 2 + fields
for row, key in ipairs(KEYS) do
  for place = 1, fields do
    record[2 * place] = ARGV[at + place]
  end
  at = at + fields
  outcomes[row] = outcome(key, record[1], record[2])
  if outcomes[row] ~= 2 then
    redis.call('HSET', key, unpack(record))
    if ARGV[1] ~= '0' then
      redis.call('EXPIRE', key, ARGV[1])
    end
  end
end
return table.concat(outcomes)
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
        fields = [f"_ts:{name}", *(_mmh3(f"{name}:{feature}") for feature in rows.values)]
        head = (self._config.online_store.key_ttl_seconds or 0, len(fields), *fields)
        project = self._config.project.encode("utf-8")
        keys = [key + project for key in rows.keys]
        values = list(zip(map(_stamp, rows.micros.tolist()), *rows.values.values(), strict=True))
        calls = [
            (len(keys[some]), *keys[some], *head, *chain.from_iterable(values[some]))
            for some in (slice(start, start + ROWS_PER_CALL) for start in range(0, len(keys), ROWS_PER_CALL))
        ]
        outcomes: Counter[int] = Counter()
        for start in range(0, len(calls), CALLS_PER_TRIP):
            outcomes.update(self._send(calls[start : start + CALLS_PER_TRIP]))
        return Written(outcomes[NEWER], outcomes[EQUAL], outcomes[OLDER])

    def _send(self, calls: list[tuple[Any, ...]]) -> bytes:
        """Return the digit of each row."""
        client = self._store._get_client(self._config.online_store)
        try:
            with client.pipeline(transaction=False) as pipe:
                # On the same connection and before its use: a server that was restarted has forgotten it.
                pipe.script_load(SCRIPT)
                for call in calls:
                    pipe.evalsha(SHA, *call)
                return b"".join(pipe.execute()[1:])
        except RedisError as error:
            raise StoreError(
                f"view {self._view.name}: Redis: {type(error).__name__}: {error}; check that it is up, has memory "
                "left, and lets this user run SCRIPT LOAD and EVALSHA; then materialise again"
            ) from error


def _stamp(micros: int) -> bytes:
    seconds, rest = divmod(micros, 1_000_000)
    stamp: bytes = Timestamp(seconds=seconds, nanos=1_000 * rest).SerializeToString()
    return stamp
