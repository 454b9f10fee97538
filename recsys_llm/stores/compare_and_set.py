"""Feast's Redis layout, written by one compare-and-set on the server for each row.

Feast reads the stored times, compares them in the client, and writes: a writer in between is overwritten, and nobody
hears of a row that was left out. The script below compares and writes each row in one step, many rows in a call, and
many calls in a round trip. Layout: one hash for each entity key; a field for each feature, and one for the view's time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

from feast.infra.online_stores.helpers import _mmh3
from redis import RedisCluster
from redis.exceptions import NoScriptError

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


class Written(NamedTuple):
    """What became of rows that were handed to an online store."""

    newer: int = 0
    """Written: the store held no row of the key, or an older one."""
    equal: int = 0
    """Written over a row of the same time: a corrected value takes the place of the old one."""
    older: int = 0
    """Left out: the store holds a newer row of the key."""

    def plus(self, other: Written) -> Written:
        """Return the sum of both."""
        return Written(*(one + another for one, another in zip(self, other, strict=True)))


def counted(outcomes: bytes) -> Written:
    """Count what :func:`compare_and_set` returned."""
    return Written(outcomes.count(NEWER), outcomes.count(EQUAL), outcomes.count(OLDER))


def compare_and_set(
    client: Any,
    view: str,
    features: Sequence[str],
    keys: Sequence[bytes],
    values: Sequence[Sequence[bytes]],
    seconds_to_live: int,
) -> bytes:
    """Write rows, each unless Redis holds a newer one; an expiry starts anew with each row that is written.

    Parameters
    ----------
    client
        Of redis-py. A cluster is given one call for each row, since every key may be on another node.
    view
        As it is stored, with its version if Feast adds one.
    keys : n
        Those of the hashes, with the project. Of rows that share one, a later row meets the earlier.
    values : n
        Of each row: its time, then a value for each of ``features``; serialised.
    seconds_to_live
        0: for ever.

    Returns
    -------
    bytes : n
        For each row :data:`NEWER`, :data:`EQUAL` or :data:`OLDER`.

    Raises
    ------
    redis.RedisError, redis.RedisClusterException
        The server failed, or refuses scripts (SCRIPT LOAD and EVALSHA; of a cluster EVALSHA and EVAL); some rows may
        be written.
    """
    fields = [f"_ts:{view}", *(_mmh3(f"{view}:{feature}") for feature in features)]
    head = (seconds_to_live, len(fields), *fields)
    in_cluster = isinstance(client, RedisCluster)
    rows = 1 if in_cluster else ROWS_PER_CALL
    calls = [
        (len(keys[some]), *keys[some], *head, *chain.from_iterable(values[some]))
        for some in (slice(start, start + rows) for start in range(0, len(keys), rows))
    ]
    per_trip = CALLS_PER_TRIP * ROWS_PER_CALL // rows
    send = _send_to_cluster if in_cluster else _send
    return b"".join(send(client, calls[start : start + per_trip]) for start in range(0, len(calls), per_trip))


def _send(client: Any, calls: Sequence[tuple[Any, ...]]) -> bytes:
    with client.pipeline(transaction=False) as pipe:
        # On the same connection and before its use: a server that was restarted has forgotten it.
        pipe.script_load(SCRIPT)
        for call in calls:
            pipe.evalsha(SHA, *call)
        return b"".join(pipe.execute()[1:])


def _send_to_cluster(client: Any, calls: Sequence[tuple[Any, ...]]) -> bytes:
    """Send calls of one key each; a node that doesn't know the script is sent it with the calls that it refused."""
    found = _trip(client, "EVALSHA", SHA, calls)
    refused = [place for place, outcome in enumerate(found) if isinstance(outcome, NoScriptError)]
    again = _trip(client, "EVAL", SCRIPT, [calls[place] for place in refused])
    for place, outcome in zip(refused, again, strict=True):
        found[place] = outcome
    failed = next((outcome for outcome in found if isinstance(outcome, Exception)), None)
    if failed is not None:
        raise failed
    return b"".join(found)


def _trip(client: Any, command: str, script: str | bytes, calls: Sequence[tuple[Any, ...]]) -> list[Any]:
    with client.pipeline() as pipe:
        for call in calls:
            # Without a node, redis-py would ask a server which of the words are keys, for each call.
            node = client.get_node_from_key(call[1])
            pipe.execute_command(command, script, *call, target_nodes=node)
        return list(pipe.execute(raise_on_error=False))
