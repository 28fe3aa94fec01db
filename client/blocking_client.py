"""`RouteStoreClient`: the operations of a route store for threads."""

from __future__ import annotations

import ssl
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, TypeVar

from routereplay.client import _operations as operations
from routereplay.client._operations import Call, OnMissing, Operation
from routereplay.client._progress import progress_bar
from routereplay.client._retry import Retry
from routereplay.client._transport import BlockingTransport
from routereplay.client.trajectory import Trajectory
from routereplay.wire.digest import Buffer
from routereplay.wire.errors import RouteReplayError
from routereplay.wire.routes import RoutedExperts

T = TypeVar("T")


class RouteStoreClient:
    """Blocking client of the route store.

    Args:
        base_url: `http://127.0.0.1:8400`, `https://...` or `unix:///path/to/socket`.
        api_key: else `ROUTEREPLAY_API_KEY_FILE` or `ROUTEREPLAY_API_KEY`.
        timeout_s: for one answer, apart from the time the store is asked to wait.
        attempts: how often a call is tried while the store is unreachable or busy, or its answer
            is damaged on its way.
        deadline_s: no try of a call begins later than this after its first; None is no limit.
        ssl_context: for https; the system's certificate authorities without one.

    Safe for threads. Where a method takes `out`, answers are received into that memory (a
    writable buffer, such as a pinned tensor's), and the arrays it returns are views of it, unless
    their ids were packed.
    Every method raises `RouteStoreError` for what the store refuses, `TransportError`
    when no answer comes and `WireError` when the bytes are wrong.
    """

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8400",
        *,
        api_key: str | None = None,
        timeout_s: float = 30.0,
        attempts: int = 4,
        deadline_s: float | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._attempts = attempts
        self._deadline_s = deadline_s
        self._transport = BlockingTransport(base_url, api_key, timeout_s, ssl_context)

    def fetch_request(
        self,
        request_id: str,
        *,
        choice: int = 0,
        layers: range | None = None,
        tokens: range | None = None,
        wait_s: float = 0.0,
        out: Buffer | None = None,
    ) -> RoutedExperts:
        """Return the routes of one choice of a request, `[tokens, layers, topk]`, read-only.

        Args:
            request_id: the `id` of the OpenAI response, or the client's own `X-Request-Id`.
            choice: `choices[i].index`.
            layers: 0-based decoder layers to fetch; all without.
            tokens: positions in `prompt + completion` to fetch; all without.
            wait_s: how long to wait while the request is unknown or not sealed.
            out: memory to receive into; new memory without it.
        """
        return self._run(operations.fetch_request(request_id, choice, layers, tokens, wait_s, out))

    def fetch_requests(
        self,
        keys: Sequence[str | tuple[str, int]],
        *,
        layers: range | None = None,
        wait_s: float = 0.0,
        progress: bool = False,
        out: Buffer | None = None,
        on_missing: OnMissing | None = None,
    ) -> list[RoutedExperts]:
        """Return the routes of many requests, given as ids or `(id, choice)`, in that order."""
        with progress_bar(len(keys), "request", progress) as bar:
            return self._run(
                operations.fetch_requests(keys, layers, wait_s, out, bar.update, on_missing)
            )

    def fetch_trajectory(
        self,
        trajectory_id: str,
        *,
        layers: range | None = None,
        tokens: range | None = None,
        wait_s: float = 0.0,
        turns: int = 0,
        requests: Sequence[str] = (),
        out: Buffer | None = None,
    ) -> Trajectory:
        """Return all turns of one trajectory.

        Args:
            trajectory_id: as the engine was told it: `X-Session-ID` or `session_id`.
            layers: 0-based decoder layers to fetch; all without.
            tokens: positions in `prompt + completion` to fetch; all without.
            wait_s: how long to wait while it is unknown or a turn that is known is not sealed.
            turns: how many it has at least, each choice of a request being one.
            requests: ids of requests that are among its turns. A turn that the store has not
                heard of is waited for only if one of these two tells of it.
            out: memory to receive into; new memory without it.

        Raises:
            RoutesPending: not all that was told of was there in time.
        """
        (key,) = operations.trajectory_keys([trajectory_id], [turns], [requests])
        return self._run(operations.fetch_trajectory(key, layers, tokens, wait_s, out))

    def fetch_trajectories(
        self,
        trajectory_ids: Sequence[str],
        *,
        layers: range | None = None,
        wait_s: float = 0.0,
        turns: Sequence[int] | None = None,
        requests: Sequence[Sequence[str]] | None = None,
        progress: bool = False,
        out: Buffer | None = None,
        on_missing: OnMissing | None = None,
    ) -> list[Trajectory]:
        """Return many trajectories, in the order of `trajectory_ids`.

        `turns` and `requests` have an entry for each of them, as `fetch_trajectory` takes it.
        Raises once after all were tried; the error names every id that failed. With
        `on_missing` it is called with each of them instead (id, code and message), and what
        was found is returned.
        """
        keys = operations.trajectory_keys(trajectory_ids, turns, requests)
        with progress_bar(len(keys), "trajectory", progress) as bar:
            return self._run(
                operations.fetch_trajectories(keys, layers, wait_s, out, bar.update, on_missing)
            )

    def get_request(self, request_id: str) -> dict[str, Any]:
        """Return what the store knows of a request: the state and manifest of each choice."""
        return self._run(operations.describe_request(request_id))

    def get_trajectory(self, trajectory_id: str) -> dict[str, Any]:
        """Return what the store knows of a trajectory, without its routes."""
        return self._run(operations.describe_trajectory(trajectory_id))

    def recent_requests(self, limit: int = 50) -> list[dict[str, Any]]:
        """Return the latest requests, newest first, as `GET /v1/requests` lists them."""
        answer = self._run(operations.read_json("/v1/requests", limit))
        found: list[dict[str, Any]] = answer["requests"]
        return found

    def recent_trajectories(self, limit: int = 50) -> list[dict[str, Any]]:
        """Return the latest trajectories, newest first, as `GET /v1/trajectories` lists them."""
        answer = self._run(operations.read_json("/v1/trajectories", limit))
        found: list[dict[str, Any]] = answer["trajectories"]
        return found

    def summary(self) -> dict[str, Any]:
        """Return what is stored and expires, who records and what is wrong."""
        return self._run(operations.read_json("/v1/summary"))

    def delete_request(self, request_id: str) -> None:
        """Delete all choices of a request."""
        self._run(operations.delete_request(request_id))

    def delete_trajectory(self, trajectory_id: str) -> None:
        """Delete a trajectory and all its turns."""
        self._run(operations.delete_trajectory(trajectory_id))

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def __enter__(self) -> RouteStoreClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _run(self, operation: Operation[T]) -> T:
        try:
            call = next(operation)
            while True:
                call = operation.send(self._send(call))
        except StopIteration as done:
            result: T = done.value
            return result

    def _send(self, call: Call) -> Any:
        retry = Retry(self._attempts, self._deadline_s)
        while True:
            body = None
            try:
                body = self._transport.send(call)
                return call.decode(body)
            except RouteReplayError as error:
                pause_s = retry.pause_after(error, answered=body is not None)
            time.sleep(pause_s)
