"""Reads the states that the scripts write, and what has become of them by time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from routereplay.sidecar.store import keys
from routereplay.sidecar.store.base import (
    NEVER_SEALED,
    Entry,
    RecordKey,
    RecordState,
    RecordStatus,
    StagedChunk,
    StoredRecord,
)
from routereplay.sidecar.store.commands import Commands, Word, fields
from routereplay.wire.digest import digest
from routereplay.wire.errors import CorruptRecord

_entries = msgspec.msgpack.Decoder(Entry)
_records = msgspec.msgpack.Decoder(StoredRecord)
_chunks = msgspec.msgpack.Decoder(StagedChunk)


async def read_statuses(
    commands: Commands, tag: str, request_ids: Sequence[str]
) -> list[RecordStatus]:
    """Return the status of every choice of the requests, in two round trips.

    Raises:
        CorruptRecord: a state or a manifest is not what was written.
    """
    found = await _read_once(commands, tag, request_ids)
    # Between the two round trips a pending record may be sealed, and its upload with it:
    # one that looks abandoned is looked at again before it is called lost.
    if any(_looks_lost(status) for status in found):
        found = await _read_once(commands, tag, request_ids)
    return found


async def _read_once(
    commands: Commands, tag: str, request_ids: Sequence[str]
) -> list[RecordStatus]:
    hashes = await _all(commands, [["HGETALL", keys.status(tag, one)] for one in request_ids])
    noted = [
        (RecordKey(tag, request_id, int(choice)), value)
        for request_id, found in zip(request_ids, hashes, strict=True)
        for choice, value in sorted(fields(found).items(), key=lambda item: int(item[0]))
    ]
    parsed = [(key, *_parse(value, key)) for key, value in noted]
    asked: list[list[Word]] = []
    for key, _, upload_id, _ in parsed:
        asked.append(["HMGET", keys.record(key), "body", "digest"])
        asked.append(["EXISTS", keys.upload(key.tag, upload_id)])
    answers = await _all(commands, asked)
    return [
        _status(key, state, upload_id, entry, answers[2 * i], bool(answers[2 * i + 1]))
        for i, (key, state, upload_id, entry) in enumerate(parsed)
    ]


async def _all(commands: Commands, asked: Sequence[Sequence[Word]]) -> list[Any]:
    return await commands.run(*asked) if asked else []


def statuses(reply: Sequence[Any]) -> list[RecordStatus]:
    """Return the statuses that `scripts/look.lua` told of; of each request in order of choice.

    Raises:
        CorruptRecord: a state or a manifest is not what was written.
    """
    if not reply:
        return []
    tag, fields = reply[0].decode(), iter(reply[1:])
    found = []
    for request_id, choice, noted, body, expected, there in zip(*[fields] * 6, strict=True):
        key = RecordKey(tag, request_id.decode(), int(choice))
        state, upload_id, entry = _parse(noted, key)
        found.append(_status(key, state, upload_id, entry, (body, expected), there is not None))
    if len(found) > 1:
        found.sort(key=lambda status: (status.key.request_id, status.key.choice))
    return found


def _looks_lost(status: RecordStatus) -> bool:
    return status.state == "dropped" and status.entry.reason == NEVER_SEALED


def decode_staged(noted: Mapping[bytes, bytes]) -> dict[int, StagedChunk]:
    """Return an upload's chunks by position, or raise `CorruptRecord`."""
    try:
        return {int(seq): _chunks.decode(value) for seq, value in noted.items()}
    except (msgspec.DecodeError, ValueError) as error:
        msg = f"the store's notes of an upload cannot be read: {error}"
        raise CorruptRecord(msg) from error


def _status(
    key: RecordKey,
    state: str,
    upload_id: str,
    entry: Entry,
    record: Sequence[bytes | None],
    has_upload: bool,
) -> RecordStatus:
    now: RecordState
    match state:
        case "sealed":
            stored = _record(record, key)
            now = "expired" if stored is None else "sealed"
            return RecordStatus(key, now, entry, upload_id, stored)
        case "pending" if not has_upload:
            lost = msgspec.structs.replace(entry, reason=NEVER_SEALED)
            return RecordStatus(key, "dropped", lost, upload_id, None)
        case "pending" | "dropped" | "deleted":
            return RecordStatus(key, state, entry, upload_id, None)
        case _:
            msg = f"the store's state of {key.request_id} choice {key.choice} is {state!r}"
            raise CorruptRecord(msg, request_id=key.request_id, choice=key.choice)


def _parse(value: bytes, key: RecordKey) -> tuple[str, str, Entry]:
    try:
        state, upload_id, packed = value.split(b" ", 2)
        return state.decode(), upload_id.decode(), _entries.decode(packed)
    except (msgspec.DecodeError, ValueError) as error:
        msg = f"the store's state of {key.request_id} choice {key.choice} cannot be read: {error}"
        raise CorruptRecord(msg, request_id=key.request_id, choice=key.choice) from error


def _record(found: Sequence[bytes | None], key: RecordKey) -> StoredRecord | None:
    body, expected = found
    if body is None and expected is None:
        return None
    if body is None or expected is None or digest(body) != expected:
        msg = f"the manifest of {key.request_id} choice {key.choice} is not what was sealed"
        raise CorruptRecord(msg, request_id=key.request_id, choice=key.choice)
    return _records.decode(body)
