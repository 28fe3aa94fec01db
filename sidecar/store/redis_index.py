"""The index in Redis or Valkey: every change of state is one script on one hash slot."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, cast

import msgspec

from routereplay.sidecar.store import keys
from routereplay.sidecar.store.base import (
    Entry,
    Lead,
    Pointer,
    RecordKey,
    RecordStatus,
    SealOutcome,
    SealRequest,
    StagedChunk,
    StageOutcome,
    Staging,
)
from routereplay.sidecar.store.commands import Commands, Script, Word, fields
from routereplay.sidecar.store.redis_engine import engine_errors
from routereplay.sidecar.store.redis_lives import Lives
from routereplay.sidecar.store.redis_looks import Looks, pointer_of
from routereplay.sidecar.store.redis_replicas import Replicas
from routereplay.sidecar.store.redis_status import decode_staged
from routereplay.wire.digest import digest
from routereplay.wire.errors import RouteStoreError

logger = logging.getLogger(__name__)

_encode = msgspec.msgpack.Encoder().encode


class RedisIndex:
    """States of records in one engine; see `store.base.Index`."""

    def __init__(
        self,
        commands: Commands,
        *,
        ttl_s: int,
        staging_ttl_s: int,
        index_ttl_s: int,
        max_bytes: int,
        max_requests: int,
        replicas: Replicas | None = None,
    ) -> None:
        self._commands = commands
        self._max_bytes = max_bytes
        self._max_requests = max_requests
        self._replicas = replicas
        self._ttl_s = ttl_s
        self._staging_ttl_s = staging_ttl_s
        self._index_ttl_s = index_ttl_s
        self._looks = Looks(commands)
        self._lives = Lives(ttl_s=ttl_s, index_ttl_s=index_ttl_s)

    async def stage(
        self, chunks: Sequence[Staging], leads: Sequence[Lead]
    ) -> tuple[list[StageOutcome], list[Pointer]]:
        """Note what uploads bring, and claim names for them, in one round trip if all is new."""
        calls = [self._stage(one) for one in chunks] + [self._claim(one) for one in leads]
        answers = await self._run_all(calls)
        outcomes = [cast("StageOutcome", answer) for answer in answers[: len(chunks)]]
        return outcomes, await self._contend(leads, answers[len(chunks) :])

    async def staged(self, tag: str, upload_id: str) -> dict[int, StagedChunk]:
        """Return what an upload has noted, by position."""
        with engine_errors():
            (found,) = await self._commands.run(["HGETALL", keys.upload(tag, upload_id)])
        return decode_staged(fields(found))

    async def so_far(
        self, key: RecordKey, upload_id: str
    ) -> tuple[bytes | None, dict[int, StagedChunk]]:
        """Return the content identity of a sealed record or None, and what is staged for it."""
        with engine_errors():
            answer, noted = await self._commands.run(
                ["HGET", keys.record(key), "content"],
                ["HGETALL", keys.upload(key.tag, upload_id)],
            )
        found = cast("bytes | None", answer)
        if found is not None and self._replicas is not None:
            # The caller acknowledges what it finds here, as it does what it seals.
            await self._replicas.confirm(keys.record(key), keys.barrier(key.tag), found)
        return found, decode_staged(fields(noted))

    async def seal(self, request: SealRequest) -> SealOutcome:
        """Make a record visible, whole, in one atomic step; or change nothing."""
        key, upload_id = request.key, request.record.upload_id
        body = _encode(request.record)
        arguments: list[Any] = [key.choice, upload_id, request.content, body, digest(body)]
        arguments += [_encode(request.entry), key.request_id]
        arguments += [*self._lives.fresh(), self._lives.short(key.tag)]
        arguments += [len(request.chunks), *map(_encode, request.chunks)]
        arguments += [nbytes for _, nbytes in request.blobs]
        names = [*_state_keys(key, upload_id), keys.arrived(key.tag)]
        names += [name for name, _ in request.blobs]
        answer = await self._run("seal", names, arguments)
        if answer == "sealed_late":
            answer = "sealed"
            await self._prolong(key.tag)
        outcome = cast("SealOutcome", answer)
        if self._replicas is not None and outcome in ("sealed", "replayed"):
            await self._replicas.confirm(keys.record(key), keys.barrier(key.tag), request.content)
        return outcome

    async def drop(self, key: RecordKey, upload_id: str, entry: Entry) -> None:
        """Note that an upload is lost; a sealed record stays sealed."""
        arguments = [key.choice, upload_id, _encode(entry), key.request_id, self._index_ttl_s]
        await self._run("drop", _state_keys(key, upload_id), arguments)

    async def delete(self, status: RecordStatus, blobs: Sequence[str]) -> None:
        """Remove a record and its blobs in one step and remember that it was deleted."""
        key, upload_id = status.key, status.upload_id
        names = [*_state_keys(key, upload_id)[:3], *blobs]
        arguments = [key.choice, upload_id, _encode(status.entry), self._index_ttl_s]
        await self._run("delete", names, arguments)

    async def claim(self, leads: Sequence[Lead]) -> list[Pointer]:
        """Let names lead where they are to; return where each leads."""
        answers = await self._run_all([self._claim(one) for one in leads])
        return await self._contend(leads, answers)

    async def locate(self, name: str) -> Pointer | None:
        """Return where an id or alias leads."""
        return await self._looks.locate(name)

    async def named(self, name: str) -> list[RecordStatus]:
        """Return the status of every choice of the request that a name leads to, if to any."""
        return await self._looks.named(name)

    async def ahead(
        self, names: Sequence[str], tags: Sequence[str]
    ) -> dict[str, list[RecordStatus]]:
        """Return what `named` and `trajectory` would of these, in one round trip."""
        return await self._looks.ahead(names, tags)

    async def request(self, pointer: Pointer) -> list[RecordStatus]:
        """Return the status of every choice of a request, in order of choice."""
        return await self._looks.request(pointer)

    async def trajectory(self, tag: str) -> list[RecordStatus]:
        """Return the status of everything under a tag, in order of start."""
        return await self._looks.trajectory(tag)

    async def _prolong(self, tag: str) -> None:
        """Let earlier turns live as long as the one that was sealed just now."""
        try:
            await self._lives.prolong(self._commands, tag, await self.trajectory(tag))
        except RouteStoreError as error:
            # It is sealed, and the next turn tries again.
            logger.warning("%s was not prolonged: %s", tag, error.message)

    async def _is_live(self, held: Pointer) -> bool:
        # Pending does not count: the first seal wins, not the first chunk.
        return any(status.state == "sealed" for status in await self.request(held))

    def _stage(self, one: Staging) -> Script:
        key, chunk = one.key, one.chunk
        arguments: list[Word] = [one.seq, _encode(chunk), key.choice, one.upload_id]
        arguments += [_encode(one.entry)]
        arguments += [key.request_id, self._staging_ttl_s, self._index_ttl_s]
        arguments += [chunk.nbytes, self._max_bytes, self._max_requests, self._ttl_s]
        return Script("stage", [*_state_keys(key, one.upload_id), keys.arrived(key.tag)], arguments)

    def _claim(self, lead: Lead, seen: str = "") -> Script:
        words = (seen, _pointer_text(lead.pointer), self._index_ttl_s)
        return Script("claim", [keys.pointer(lead.name)], words)

    async def _contend(self, leads: Sequence[Lead], answers: Sequence[str]) -> list[Pointer]:
        """Return where names lead, once those that lead to nothing live were claimed again."""
        found = [pointer_of(answer) for answer in answers]
        for number, (lead, held) in enumerate(zip(leads, found, strict=True)):
            if held != lead.pointer and not await self._is_live(held):
                (answer,) = await self._run_all([self._claim(lead, _pointer_text(held))])
                found[number] = pointer_of(answer)
        return found

    async def _run(self, name: str, names: list[str], arguments: Sequence[Any]) -> str:
        (answer,) = await self._run_all([Script(name, names, arguments)])
        return answer

    async def _run_all(self, calls: Sequence[Script]) -> list[str]:
        if not calls:
            return []
        with engine_errors():
            answers = await self._commands.scripts(calls)
        return [answer.decode() for answer in answers]


def _state_keys(key: RecordKey, upload_id: str) -> list[str]:
    return [
        keys.upload(key.tag, upload_id),
        keys.status(key.tag, key.request_id),
        keys.record(key),
        keys.requests(key.tag),
    ]


def _pointer_text(pointer: Pointer) -> str:
    return f"{pointer.tag} {pointer.request_id}"
