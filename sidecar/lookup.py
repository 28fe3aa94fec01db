"""From an id to what the index knows of it, now or as soon as it is sealed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from routereplay.sidecar.store import keys
from routereplay.sidecar.store.base import Index, Pointer, RecordStatus
from routereplay.wire.errors import (
    BadRequest,
    NotFound,
    RoutesDeleted,
    RoutesDropped,
    RoutesExpired,
    RoutesPending,
    RouteStoreError,
)
from routereplay.wire.ids import normalize_id
from routereplay.wire.records import TrajectoryKey

T = TypeVar("T")

_FIRST_DELAY_S = 0.05
_LAST_DELAY_S = 0.25

Gone = Callable[[], Awaitable[bool]]
"""Tells whether the client that waits has left."""


async def never_gone() -> bool:
    """Stand for a caller that does not leave."""
    return False


class Lookup:
    """Finds requests and trajectories under any id that a client may know them by.

    Args:
        index: where they are looked at.
        namespace: of the ids.
        ahead: what the first look at a name or a tag finds; see `ahead`.
    """

    def __init__(
        self, index: Index, namespace: str, ahead: Mapping[str, list[RecordStatus]] | None = None
    ) -> None:
        self._index = index
        self._namespace = namespace
        self._ahead = dict(ahead or {})

    async def ahead(self, requests: Iterable[str], trajectories: Iterable[str]) -> Lookup:
        """Return a lookup that has looked at many ids at once, for who looks at them now.

        Its first look at each of them costs no trip of its own; later ones do.
        """
        names = [keys.name_of(self._namespace, normalize_id(one)) for one in requests]
        tags = [keys.trajectory_tag(self._namespace, normalize_id(one)) for one in trajectories]
        found = await self._index.ahead(names, tags)
        return Lookup(self._index, self._namespace, found)

    async def request(self, request_id: str) -> list[RecordStatus]:
        """Return the status of every choice of a request, or raise `NotFound`."""
        name = normalize_id(request_id)
        key = keys.name_of(self._namespace, name)
        found = self._ahead.pop(key, None)
        if found is None:
            found = await self._index.named(key)
        if not found:
            what = f"request {name}"
            raise _unknown(what, name)
        return found

    async def sealed(self, request_id: str, choice: int) -> RecordStatus:
        """Return the sealed record of one choice, or raise what it is instead."""
        for status in await self.request(request_id):
            if status.key.choice == choice:
                if status.state != "sealed":
                    raise state_error(status)
                return status
        name = normalize_id(request_id)
        what = f"request {name}, choice {choice}"
        raise _unknown(what, name)

    async def trajectory(self, trajectory_id: str) -> list[RecordStatus]:
        """Return the status of every turn of a trajectory in order, or raise `NotFound`."""
        name = normalize_id(trajectory_id)
        tag = keys.trajectory_tag(self._namespace, name)
        found = self._ahead.pop(tag, None)
        if found is None:
            found = await self._index.trajectory(tag)
        if not found:
            what = f"trajectory {name}"
            raise _unknown(what, name)
        return found

    async def whole(self, wanted: TrajectoryKey) -> list[RecordStatus]:
        """Return the turns of a trajectory that holds what its caller knows to be of it.

        Raises:
            NotFound: the trajectory was never seen.
            RoutesPending: turns, or requests, are not there yet.
            BadRequest: a request is of another trajectory.
        """
        found = await self.trajectory(wanted.id)
        what = f"trajectory {normalize_id(wanted.id)}"
        if len(found) < wanted.turns:
            msg = f"{what}: {len(found)} of {wanted.turns} turns were heard of; ask again"
            raise RoutesPending(msg, turns=len(found))
        tag, held = found[0].key.tag, {turn.key.request_id for turn in found}
        for name in map(normalize_id, wanted.requests):
            if name in held:
                continue
            # The client's own id of a request, perhaps.
            pointer = await self._index.locate(keys.name_of(self._namespace, name))
            if pointer is None or (pointer.tag == tag and pointer.request_id not in held):
                msg = f"{what}: request {name} was not heard of yet; ask again"
                raise RoutesPending(msg, request_id=name)
            if pointer.tag != tag:
                msg = f"{what}: request {name} is not of it, but of {_owner(pointer)}"
                raise BadRequest(msg, request_id=name)
        return found


def require_sealed(turns: Sequence[RecordStatus]) -> None:
    """Raise the state of a trajectory of which nothing is sealed."""
    if any(turn.state == "sealed" for turn in turns):
        return
    # Pending first: it is the one state that a caller can wait out.
    raise state_error(min(turns, key=lambda turn: turn.state != "pending"))


def settled(turns: list[RecordStatus]) -> bool:
    """Tell whether no turn is on its way."""
    return all(turn.state != "pending" for turn in turns)


async def wait_for(
    look: Callable[[], Awaitable[T]],
    *,
    wait_s: float,
    done: Callable[[T], bool] = lambda _: True,
    gone: Gone = never_gone,
) -> T:
    """Look until something is there and done, `wait_s` is over, or the client left.

    The engine is asked again after 50 ms and then ever more rarely, up to 250 ms.

    Raises:
        NotFound, RoutesPending: still so at the end.
    """
    clock = asyncio.get_running_loop().time
    deadline = clock() + wait_s
    delay = _FIRST_DELAY_S
    while True:
        error: RouteStoreError | None = None
        try:
            found = await look()
            if done(found):
                return found
        except (NotFound, RoutesPending) as reason:
            error = reason
        left = deadline - clock()
        if left <= 0 or await gone():
            if error is not None:
                raise error
            return found
        await asyncio.sleep(min(delay, left))
        delay = min(delay * 1.5, _LAST_DELAY_S)


def state_error(status: RecordStatus) -> RouteStoreError:
    """Return the error for a record that is not sealed."""
    key, entry = status.key, status.entry
    what = f"request {key.request_id}, choice {key.choice}"
    details = {"request_id": key.request_id, "choice": key.choice}
    match status.state:
        case "pending":
            return RoutesPending(f"{what}: still being recorded; ask again or use wait=", **details)
        case "expired":
            return RoutesExpired(f"{what}: its routes were stored and have expired", **details)
        case "deleted":
            return RoutesDeleted(f"{what}: its routes were deleted on request", **details)
        case "dropped":
            msg = f"{what}: the recorder lost its routes: {entry.reason}"
            return RoutesDropped(msg, reason=entry.reason, rows_lost=entry.rows_lost, **details)
        case "sealed":
            msg = f"{what} is sealed: there is no error to report"
            raise ValueError(msg)


def _owner(pointer: Pointer) -> str:
    name = keys.trajectory_of(pointer.tag)
    return "no trajectory" if name is None else f"trajectory {name}"


def _unknown(what: str, name: str) -> NotFound:
    msg = (
        f"{what}: never seen by this store. The recorder may not have sent it yet "
        "(use wait=), or the server that answered it does not record here."
    )
    return NotFound(msg, id=name)
