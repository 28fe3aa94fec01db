"""What is read of records: in one look, or in two trips with seals in between."""

import asyncio

import msgspec
import pytest
from support.frames import make_upload

from routereplay.sidecar.store.base import NEVER_SEALED, Entry, Layout, StoredRecord
from routereplay.sidecar.store.redis_status import read_statuses, statuses
from routereplay.wire.digest import digest
from routereplay.wire.errors import CorruptRecord

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


BODY = msgspec.msgpack.encode(
    StoredRecord(make_upload("request").manifest, "upload", (Layout(10),), 64)
)


def looked_at(state, body=None, expected=None, there=None, choice=b"0"):
    return [b"request", choice, state + b" upload " + ENTRY, body, expected, there]


def told_of(*choices):
    found = statuses([b"default/r:request", *(field for fields in choices for field in fields)])
    return [(status.key.choice, status.state, status.entry.reason) for status in found]


def test_nothing_was_seen_under_a_name_that_leads_nowhere():
    assert statuses([]) == []


def test_a_sealed_record_is_expired_once_its_manifest_is_gone():
    sealed, gone = looked_at(b"sealed", BODY, digest(BODY)), looked_at(b"sealed", choice=b"1")

    assert told_of(gone, sealed) == [(0, "sealed", ""), (1, "expired", "")]


def test_a_pending_record_whose_upload_is_gone_is_lost():
    there, gone = looked_at(b"pending", there=1), looked_at(b"pending", choice=b"10")

    assert told_of(gone, there) == [(0, "pending", ""), (10, "dropped", NEVER_SEALED)]


@pytest.mark.parametrize(
    "fields",
    [
        looked_at(b"sealed", BODY[:-1], digest(BODY)),
        looked_at(b"sealed", BODY, None),
        looked_at(b"elsewhere"),
        [b"request", b"0", b"sealed", None, None, None],
    ],
)
def test_what_was_not_written_here_is_never_read_as_something_else(fields):
    with pytest.raises(CorruptRecord):
        told_of(fields)
