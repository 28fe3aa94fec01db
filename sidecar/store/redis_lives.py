"""Lives of records: a trajectory lives as long as its newest turn needs its first."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

from routereplay.sidecar.store import keys, parts
from routereplay.sidecar.store.base import RecordStatus
from routereplay.sidecar.store.commands import Commands
from routereplay.sidecar.store.redis_engine import engine_errors

_TTL_SPREAD = 20
"""A record lives up to a twentieth longer than it must."""

BLOB_MARGIN_S = 60
"""Values live this much longer than their record, so a visible record never lacks one."""


class Life(NamedTuple):
    """Seconds that a record and what belongs to it live."""

    record_s: int
    values_s: int
    index_s: int


class Lives:
    """Gives records their lives, and gives them anew.

    Args:
        ttl_s: life of a record.
        index_ttl_s: life of what tells an expired record from one that never was.
    """

    def __init__(self, *, ttl_s: int, index_ttl_s: int) -> None:
        self._ttl_s = ttl_s
        self._index_ttl_s = index_ttl_s

    def fresh(self) -> Life:
        """Return the life of one more record."""
        # Spread: records of one training step must not all expire in one second.
        extra = random.randint(0, self._ttl_s // _TTL_SPREAD)
        ttl_s = self._ttl_s + extra
        return Life(ttl_s, ttl_s + BLOB_MARGIN_S, self._index_ttl_s + extra)

    def short(self, tag: str) -> int:
        """Return the rest of a life that a new turn prolongs; 0 for what has no turns.

        Half a life: each record of a trajectory is prolonged at most twice in it.
        """
        return 0 if keys.trajectory_of(tag) is None else max(self._ttl_s // 2, 1)

    async def prolong(self, commands: Commands, tag: str, found: Sequence[RecordStatus]) -> None:
        """Give all that is sealed under a tag its whole life again.

        Each record in one step with its values; a record that a failure leaves out is
        prolonged with the next turn, as only the last step says that all were.
        """
        namespace = tag.partition("/")[0]
        until = []
        for status in found:
            if status.record is None:
                continue
            key, life = status.key, self.fresh()
            names = [keys.record(key), keys.status(tag, key.request_id), keys.requests(tag)]
            names += [keys.arrived(tag)]
            names += [part.key for part in parts.record_parts(key, status.record)]
            with engine_errors():
                until.append(int(await commands.script("prolong", names, life)))
                for item_id in (key.request_id, *status.record.manifest.aliases):
                    pointer = keys.pointer(keys.name_of(namespace, item_id))
                    await commands.run(["EXPIRE", pointer, life.index_s, "GT"])
        living = [moment for moment in until if moment]
        if living:
            with engine_errors():
                await commands.run(
                    ["HSET", keys.arrived(tag), "until", min(living)],
                    ["EXPIRE", keys.arrived(tag), self._ttl_s, "NX"],
                )
