"""The journal in Redis or Valkey: a capped stream, and counters for each slice of time.

Written in one pipeline for many events and never by the scripts that seal, so that a seal
costs nothing for it. All its keys share one slot of a cluster.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Sequence
from typing import Any, cast

import msgspec
import redis.asyncio

from routereplay.sidecar.journal import MAX_EVENTS, Bucket, Event
from routereplay.sidecar.store import keys
from routereplay.sidecar.store.redis_engine import engine_errors

logger = logging.getLogger(__name__)

_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(Event)

BUCKETS = 48
"""Slices of a record's life in which what was sealed is counted."""
_FIELD = b"e"
_INLINE = 256
"""Events that are decoded on the event loop."""
_COUNTS = ("records", "rows", "bytes")


class RedisJournal:
    """Events and counters in one engine; see `journal.EventLog`."""

    def __init__(
        self, client: redis.asyncio.Redis, namespace: str, *, ttl_s: int, index_ttl_s: int
    ) -> None:
        self._client = client
        self._key = keys.journal(namespace)
        self._ttl_s = ttl_s
        self._index_ttl_s = index_ttl_s
        self._width_s = max(math.ceil(ttl_s / BUCKETS), 1)

    async def append(self, events: Sequence[Event]) -> None:
        """Add events, drop the oldest beyond `MAX_EVENTS`, and count the sealed ones."""
        with engine_errors():
            async with self._client.pipeline(transaction=False) as pipe:
                for event in events[-MAX_EVENTS:]:
                    entry: dict[Any, Any] = {_FIELD: _encode(event)}
                    pipe.xadd(self._key, entry, maxlen=MAX_EVENTS, approximate=True)
                pipe.expire(self._key, self._index_ttl_s)
                for number, sums in self._sums(events).items():
                    key = keys.sealed_counts(self._key, self._width_s, number)
                    for name, value in zip(_COUNTS, sums, strict=True):
                        pipe.hincrby(key, name, value)
                    pipe.expire(key, self._ttl_s + self._width_s)
                await pipe.execute()

    async def read(self, after: str) -> tuple[list[Event], str, bool]:
        """Return the events after a position, the new position, and whether the log is whole."""
        with engine_errors():
            async with self._client.pipeline(transaction=False) as pipe:
                pipe.xrange(self._key, count=1)
                # The newest first: of a log that is longer than what is kept, those count.
                pipe.xrevrange(self._key, "+", f"({after}" if after else "-", MAX_EVENTS)
                oldest, found = await pipe.execute()
        entries = cast("list[tuple[bytes, dict[bytes, bytes]]]", found)[::-1]
        # A log that begins after what was read was lost, or has moved on past all of it.
        is_whole = bool(oldest and after) and _order(oldest[0][0].decode()) <= _order(after)
        position = entries[-1][0].decode() if entries else after if is_whole else ""
        values = [fields[_FIELD] for _, fields in entries if _FIELD in fields]
        if len(values) <= _INLINE:
            return _decoded(values), position, is_whole
        # The first reader of a long log must not hold up who sends and fetches.
        return await asyncio.to_thread(_decoded, values), position, is_whole

    async def sealed(self, now: float) -> list[Bucket]:
        """Return what was sealed within the life of a record, in order of time."""
        last = int(now // self._width_s)
        numbers = range(last - math.ceil(self._ttl_s / self._width_s), last + 1)
        with engine_errors():
            async with self._client.pipeline(transaction=False) as pipe:
                for number in numbers:
                    pipe.hmget(keys.sealed_counts(self._key, self._width_s, number), _COUNTS)
                counts = await pipe.execute()
        return [
            Bucket(
                number * self._width_s,
                (number + 1) * self._width_s,
                *(int(value or 0) for value in values),
            )
            for number, values in zip(numbers, counts, strict=True)
        ]

    def _sums(self, events: Sequence[Event]) -> dict[int, list[int]]:
        sums: dict[int, list[int]] = {}
        for event in events:
            if event.kind == "sealed":
                bucket = sums.setdefault(int(event.at // self._width_s), [0, 0, 0])
                bucket[0] += 1
                bucket[1] += event.rows
                bucket[2] += event.nbytes
        return sums


def _decoded(values: Sequence[bytes]) -> list[Event]:
    """Return the events that this release knows; a later one may have written others."""
    events = []
    for value in values:
        try:
            events.append(_decoder.decode(value))
        except msgspec.MsgspecError:
            logger.debug("an event in the journal is not one that this release knows")
    return events


def _order(position: str) -> tuple[int, ...]:
    return tuple(int(part) for part in position.split("-"))
