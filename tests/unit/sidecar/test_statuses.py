"""The state of a record is read in two round trips, and records are sealed in between."""

import asyncio

import msgspec
from support.frames import make_upload

from routereplay.sidecar.store.base import NEVER_SEALED, Entry, Layout, StoredRecord
from routereplay.sidecar.store.redis_status import read_statuses
from routereplay.wire.digest import digest

ENTRY = msgspec.msgpack.encode(Entry(engine_id="engine"))
PENDING, SEALED = ({b"0": state + b" upload " + ENTRY} for state in (b"pending", b"sealed"))
NO_RECORD, NO_UPLOAD = [None, None], 0


class ScriptedEngine:
    """Answers one round trip after the other from a list."""

    def __init__(self, *answers):
        self.answers = list(answers)

    async def run(self, *commands):
        return self.answers.pop(0)


def states_of(*answers):
    engine = ScriptedEngine(*answers)
    found = asyncio.run(read_statuses(engine, "tag", ["request"]))
    assert engine.answers == []
    return [(status.state, status.entry.reason) for status in found]


def test_a_record_that_is_sealed_between_the_round_trips_is_not_called_lost():
    stored = StoredRecord(make_upload("request").manifest, "upload", (Layout(10),), 64)
    body = msgspec.msgpack.encode(stored)
    sealed = [body, digest(body)]
    found = states_of([PENDING], [sealed, NO_UPLOAD], [SEALED], [sealed, NO_UPLOAD])
    assert found == [("sealed", "")]


def test_a_record_whose_upload_is_gone_is_lost():
    found = states_of([PENDING], [NO_RECORD, NO_UPLOAD], [PENDING], [NO_RECORD, NO_UPLOAD])
    assert found == [("dropped", NEVER_SEALED)]
