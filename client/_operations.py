"""What the two clients do, written once without I/O.

An operation is a generator: it yields `Call`s, is sent the answers, and returns its
result. `RouteStoreClient` drives it with a blocking transport, `AsyncRouteStoreClient`
with an asynchronous one.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias, TypeVar
from urllib.parse import quote

import msgspec

from routereplay.client._decode import decode_routes, decode_trajectories
from routereplay.client._room import Room
from routereplay.client.trajectory import Trajectory
from routereplay.wire.digest import Buffer
from routereplay.wire.errors import (
    MalformedFrame,
    RouteReplayError,
    RouteStoreError,
    error_from_wire,
)
from routereplay.wire.ids import normalize_id
from routereplay.wire.records import (
    FetchFailure,
    FetchRequest,
    RequestKey,
    Routes,
    TrajectoryKey,
)
from routereplay.wire.routes import RoutedExperts

T = TypeVar("T")

BATCH = 16
"""Trajectories asked for in one request: enough to fill a stream, few enough to show progress."""


@dataclass(frozen=True, slots=True)
class Call:
    """One HTTP exchange; `wait_s` is how long the store was asked to wait before it answers."""

    method: str
    path: str
    params: Mapping[str, str | list[str]] = field(default_factory=dict)
    body: bytes | None = None
    wait_s: float = 0.0
    room: Callable[[int], memoryview] | None = None
    """Where the answer's body is received; new memory without it."""
    decode: Callable[[memoryview], Any] = bytes
    """Makes of the body what is sent back; a call whose answer cannot be decoded is repeated."""


Operation: TypeAlias = Generator[Call, Any, T]
Advance: TypeAlias = Callable[[int], object]
OnMissing: TypeAlias = Callable[[FetchFailure], object]
"""Called with each id that could not be fetched, and why, in place of an error."""


def fetch_request(
    request_id: str,
    choice: int,
    layers: range | None,
    tokens: range | None,
    wait_s: float,
    out: Buffer | None,
) -> Operation[RoutedExperts]:
    """Fetch one choice of one request."""
    params = {"choice": str(choice)} | _slices(layers, tokens) | _wait(wait_s)
    path = f"{_request_path(request_id)}/routes"
    key = RequestKey(id=normalize_id(request_id), choice=choice)

    def decode(body: memoryview) -> RoutedExperts:
        _, items = decode_routes(body)
        return _asked_for(_first(items), key)

    call = Call("GET", path, params, wait_s=wait_s, room=Room(out).take, decode=decode)
    routes: RoutedExperts = yield call
    return routes


def fetch_trajectory(
    key: TrajectoryKey,
    layers: range | None,
    tokens: range | None,
    wait_s: float,
    out: Buffer | None,
) -> Operation[Trajectory]:
    """Fetch all turns of one trajectory in one frame."""
    params: dict[str, str | list[str]] = {**_slices(layers, tokens), **_wait(wait_s)}
    if key.turns:
        params["turns"] = str(key.turns)
    if key.requests:
        params["request"] = list(map(normalize_id, key.requests))
    path = f"{_trajectory_path(key.id)}/routes"
    room = Room(out).take
    name = normalize_id(key.id)

    def decode(body: memoryview) -> Trajectory:
        _, trajectories = decode_trajectories(body)
        trajectory = _first(trajectories)
        if trajectory.trajectory_id != name:
            raise MalformedFrame(_other(f"trajectory {trajectory.trajectory_id}", name))
        return trajectory

    call = Call("GET", path, params, wait_s=wait_s, room=room, decode=decode)
    trajectory: Trajectory = yield call
    return trajectory


def fetch_trajectories(
    keys: Iterable[TrajectoryKey],
    layers: range | None,
    wait_s: float,
    out: Buffer | None,
    advance: Advance,
    on_missing: OnMissing | None,
) -> Operation[list[Trajectory]]:
    """Fetch many trajectories, in the order asked for; what failed is raised at the end."""
    found: list[Trajectory] = []
    failures: list[FetchFailure] = []
    room = Room(out)
    for keys_of_batch in _batches(list(keys)):
        batch = [normalize_id(key.id) for key in keys_of_batch]
        wanted = tuple(map(_trajectory_key, keys_of_batch))
        body = FetchRequest(trajectories=wanted, layers=_bounds(layers), wait=wait_s)
        header, trajectories = yield _fetch_call(body, room, decode_trajectories)
        by_id = {trajectory.trajectory_id: trajectory for trajectory in trajectories}
        found.extend(by_id[text] for text in batch if text in by_id)
        failures.extend(header.failures)
        advance(len(batch))
    _settle(failures, on_missing)
    return found


def fetch_requests(
    keys: Iterable[str | tuple[str, int]],
    layers: range | None,
    wait_s: float,
    out: Buffer | None,
    advance: Advance,
    on_missing: OnMissing | None,
) -> Operation[list[RoutedExperts]]:
    """Fetch many requests, in the order asked for; what failed is raised at the end."""
    found: list[RoutedExperts] = []
    failures: list[FetchFailure] = []
    room = Room(out)
    for batch in _batches([_request_key(key) for key in keys]):
        body = FetchRequest(requests=tuple(batch), layers=_bounds(layers), wait=wait_s)
        header, items = yield _fetch_call(body, room, partial(_decode_requests, batch))
        found.extend(items)
        failures.extend(header.failures)
        advance(len(batch))
    _settle(failures, on_missing)
    return found


def describe_request(request_id: str) -> Operation[dict[str, Any]]:
    """Read what the store knows of a request."""
    answer: dict[str, Any] = yield Call("GET", _request_path(request_id), decode=_json)
    return answer


def describe_trajectory(trajectory_id: str) -> Operation[dict[str, Any]]:
    """Read what the store knows of a trajectory."""
    answer: dict[str, Any] = yield Call("GET", _trajectory_path(trajectory_id), decode=_json)
    return answer


def read_json(path: str, limit: int | None = None) -> Operation[dict[str, Any]]:
    """Read what the store says of itself, or a list of what is there lately."""
    params = {} if limit is None else {"limit": str(limit)}
    answer: dict[str, Any] = msgspec.json.decode((yield Call("GET", path, params)))
    return answer


def delete_request(request_id: str) -> Operation[None]:
    """Delete all choices of a request."""
    yield Call("DELETE", _request_path(request_id))


def delete_trajectory(trajectory_id: str) -> Operation[None]:
    """Delete a trajectory and all its turns."""
    yield Call("DELETE", _trajectory_path(trajectory_id))


class _Problem(msgspec.Struct):
    code: str
    message: str
    details: dict[str, Any] | None = None


def error_of(status: int, body: bytes) -> RouteReplayError:
    """Return the error that an answer that is not good stands for."""
    try:
        problem = msgspec.json.decode(body, type=_Problem)
        return error_from_wire(problem.code, problem.message, problem.details or {})
    except (msgspec.DecodeError, UnicodeDecodeError):
        msg = f"the store answered {status} without a problem document: {body[:200]!r}"
        return RouteStoreError(msg, status=status)


def _fetch_call(body: FetchRequest, room: Room, decode: Callable[[memoryview], T]) -> Call:
    def decode_and_keep(answer: memoryview) -> T:
        decoded = decode(answer)
        room.keep(answer)
        return decoded

    encoded = msgspec.json.encode(body)
    return Call(
        "POST",
        "/v1/fetch",
        body=encoded,
        wait_s=body.wait,
        room=room.take,
        decode=decode_and_keep,
    )


def _decode_requests(
    keys: Sequence[RequestKey], body: memoryview
) -> tuple[Routes, list[RoutedExperts]]:
    header, items = decode_routes(body)
    asked = iter(keys)
    for routes in items:
        # In the order asked for; those between could not be served.
        if not any(_is_of(routes, key) for key in asked):
            raise MalformedFrame(_other(_name(routes), f"one of {len(keys)} requests"))
    return header, items


def _asked_for(routes: RoutedExperts, key: RequestKey) -> RoutedExperts:
    if not _is_of(routes, key):
        raise MalformedFrame(_other(_name(routes), f"{key.id} choice {key.choice}"))
    return routes


def _is_of(routes: RoutedExperts, key: RequestKey) -> bool:
    manifest = routes.manifest
    return manifest.choice == key.choice and key.id in (manifest.request_id, *manifest.aliases)


def _name(routes: RoutedExperts) -> str:
    return f"{routes.manifest.request_id} choice {routes.manifest.choice}"


def _other(found: str, asked: str) -> str:
    return f"the store answered with {found} where {asked} was asked for"


def _first(found: Sequence[T]) -> T:
    if not found:
        msg = "the store answered with no record where one was asked for"
        raise MalformedFrame(msg)
    return found[0]


def _json(body: memoryview) -> Any:
    try:
        return msgspec.json.decode(body)
    except msgspec.DecodeError as error:
        msg = f"the store answered with something that is no JSON: {error}"
        raise MalformedFrame(msg) from error


def _settle(failures: Sequence[FetchFailure], on_missing: OnMissing | None) -> None:
    """Hand what could not be fetched to the caller's hook, or raise once for all of it."""
    if on_missing is not None:
        for failure in failures:
            on_missing(failure)
    elif failures:
        first = failures[0]
        listed = "; ".join(f"{f.id}: {f.code}, {f.message}" for f in failures[:20])
        more = f" and {len(failures) - 20} more" if len(failures) > 20 else ""
        msg = f"{len(failures)} of the ids asked for could not be fetched: {listed}{more}"
        raise error_from_wire(first.code, msg, {"ids": [failure.id for failure in failures]})


def trajectory_keys(
    ids: Iterable[str], turns: Sequence[int] | None, requests: Sequence[Sequence[str]] | None
) -> list[TrajectoryKey]:
    """Return what is wanted of each trajectory.

    Raises:
        ValueError: `turns` or `requests` has not one entry for each trajectory.
    """
    names = list(ids)
    for what, given in (("turns", turns), ("requests", requests)):
        if given is not None and len(given) != len(names):
            msg = f"{what} has {len(given)} entries for {len(names)} trajectories"
            raise ValueError(msg)
    return [
        TrajectoryKey(
            id=name,
            turns=0 if turns is None else turns[number],
            requests=() if requests is None else tuple(requests[number]),
        )
        for number, name in enumerate(names)
    ]


def _trajectory_key(key: TrajectoryKey) -> str | TrajectoryKey:
    name = normalize_id(key.id)
    if not key.turns and not key.requests:
        # As every store understands it.
        return name
    requests = tuple(map(normalize_id, key.requests))
    return TrajectoryKey(id=name, turns=key.turns, requests=requests)


def _request_key(key: str | tuple[str, int]) -> RequestKey:
    request_id, choice = (key, 0) if isinstance(key, str) else key
    return RequestKey(id=normalize_id(request_id), choice=choice)


def _batches(items: Sequence[T]) -> list[Sequence[T]]:
    return [items[start : start + BATCH] for start in range(0, len(items), BATCH)]


def _request_path(request_id: str) -> str:
    return f"/v1/requests/{quote(normalize_id(request_id), safe='')}"


def _trajectory_path(trajectory_id: str) -> str:
    return f"/v1/trajectories/{quote(normalize_id(trajectory_id), safe='')}"


def _bounds(span: range | None) -> tuple[int, int] | None:
    if span is None:
        return None
    if span.step != 1:
        msg = f"a slice of routes has step 1; got {span}"
        raise ValueError(msg)
    return span.start, span.stop


def _slices(layers: range | None, tokens: range | None) -> dict[str, str]:
    spans = {"layers": _bounds(layers), "tokens": _bounds(tokens)}
    return {name: f"{span[0]}:{span[1]}" for name, span in spans.items() if span is not None}


def _wait(wait_s: float) -> dict[str, str]:
    return {"wait": f"{wait_s:g}"} if wait_s else {}
