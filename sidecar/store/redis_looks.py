"""Looks at records: by one script each on one engine, and by commands on a cluster.

A script finds the keys that it reads by what it reads before. On a cluster it may not: while a
slot moves to another node, a key that it did not declare is gone where it looks for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

from routereplay.sidecar.store import keys
from routereplay.sidecar.store.base import Pointer, RecordStatus
from routereplay.sidecar.store.commands import Commands, Script, Word
from routereplay.sidecar.store.redis_engine import engine_errors
from routereplay.sidecar.store.redis_status import read_statuses, statuses
from routereplay.wire.errors import CorruptRecord

_MOST_AT_ONCE = 256
"""Requests that one script looks at: all other clients of the engine wait for it."""

_TEMPLATES = keys.templates()


class Looks:
    """Reads the status of records in one engine."""

    def __init__(self, commands: Commands) -> None:
        self._commands = commands

    async def locate(self, name: str) -> Pointer | None:
        """See `Index.locate`."""
        with engine_errors():
            (text,) = await self._commands.run(["GET", keys.pointer(name)])
        return None if text is None else pointer_of(cast("bytes", text).decode())

    async def request(self, pointer: Pointer) -> list[RecordStatus]:
        """See `Index.request`."""
        return await self._requests(pointer.tag, [pointer.request_id])

    async def named(self, name: str) -> list[RecordStatus]:
        """See `Index.named`."""
        if self._commands.together:
            return statuses(await self._look(_by_name(name)))
        pointer = await self.locate(name)
        return [] if pointer is None else await self.request(pointer)

    async def trajectory(self, tag: str) -> list[RecordStatus]:
        """See `Index.trajectory`."""
        if self._commands.together:
            reply = await self._look(_some(tag))
            if not _are_too_many(reply):
                return sorted(statuses(reply), key=_order)
        with engine_errors():
            (members,) = await self._commands.run(["SMEMBERS", keys.requests(tag)])
        names = [name.decode() for name in cast("Iterable[bytes]", members)]
        return sorted(await self._requests(tag, names), key=_order)

    async def ahead(
        self, names: Sequence[str], tags: Sequence[str]
    ) -> dict[str, list[RecordStatus]]:
        """See `Index.ahead`."""
        if not self._commands.together or len(names) + len(tags) < 2:
            return {}
        calls = [_by_name(name) for name in names] + [_some(tag) for tag in tags]
        with engine_errors():
            replies = await self._commands.scripts(calls)
        found: dict[str, list[RecordStatus]] = {}
        for number, (asked, reply) in enumerate(zip([*names, *tags], replies, strict=True)):
            if _are_too_many(reply):
                continue
            try:
                seen = statuses(reply)
            except CorruptRecord:
                # An error of one, which is raised where that one is asked for.
                continue
            found[asked] = seen if number < len(names) else sorted(seen, key=_order)
        return found

    async def _requests(self, tag: str, request_ids: Sequence[str]) -> list[RecordStatus]:
        if not self._commands.together:
            with engine_errors():
                return await read_statuses(self._commands, tag, request_ids)
        found: list[RecordStatus] = []
        for start in range(0, len(request_ids), _MOST_AT_ONCE):
            page = request_ids[start : start + _MOST_AT_ONCE]
            found += statuses(await self._look(_some(tag, page)))
        return found

    async def _look(self, call: Script) -> list[Any]:
        with engine_errors():
            return cast("list[Any]", await self._commands.script(*call))


def pointer_of(text: str) -> Pointer:
    """Return where a name leads, of how an engine holds it."""
    tag, request_id = text.split(" ", 1)
    return Pointer(tag, request_id)


def _by_name(name: str) -> Script:
    return Script("look", [keys.pointer(name)], ["name", *_TEMPLATES])


def _some(tag: str, request_ids: Sequence[str] = ()) -> Script:
    """Return the look at some requests of a tag, or at all."""
    words: list[Word] = ["tag", *_TEMPLATES, tag, _MOST_AT_ONCE, *request_ids]
    return Script("look", [keys.requests(tag)], words)


def _are_too_many(reply: Sequence[object]) -> bool:
    return len(reply) == 2


def _order(status: RecordStatus) -> tuple[float, int, str, int]:
    key, entry = status.key, status.entry
    return entry.started_at, entry.ordinal, key.request_id, key.choice
