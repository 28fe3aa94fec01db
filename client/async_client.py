"""`AsyncRouteStoreClient`: the operations of a route store for asyncio."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, TypeVar

from routereplay.client import _operations as operations
from routereplay.client._operations import Call, OnMissing, Operation
from routereplay.client._progress import progress_bar
from routereplay.client._retry import Retry
from routereplay.client._transport import AsyncTransport
from routereplay.client.trajectory import Trajectory
from routereplay.wire.digest import Buffer
from routereplay.wire.errors import RouteReplayError
from routereplay.wire.routes import RoutedExperts

T = TypeVar("T")


class AsyncRouteStoreClient:
    """`RouteStoreClient` for asyncio: the same methods, awaited."""

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
        self._transport = AsyncTransport(base_url, api_key, timeout_s, ssl_context)

    async def fetch_request(
        self,
        request_id: str,
        *,
        choice: int = 0,
        layers: range | None = None,
        tokens: range | None = None,
        wait_s: float = 0.0,
        out: Buffer | None = None,
    ) -> RoutedExperts:
        """See `RouteStoreClient.fetch_request`."""
        return await self._run(
            operations.fetch_request(request_id, choice, layers, tokens, wait_s, out)
        )

    async def fetch_requests(
        self,
        keys: Sequence[str | tuple[str, int]],
        *,
        layers: range | None = None,
        wait_s: float = 0.0,
        progress: bool = False,
        out: Buffer | None = None,
        on_missing: OnMissing | None = None,
    ) -> list[RoutedExperts]:
        """See `RouteStoreClient.fetch_requests`."""
        with progress_bar(len(keys), "request", progress) as bar:
            return await self._run(
                operations.fetch_requests(keys, layers, wait_s, out, bar.update, on_missing)
            )

    async def fetch_trajectory(
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
        """See `RouteStoreClient.fetch_trajectory`."""
        (key,) = operations.trajectory_keys([trajectory_id], [turns], [requests])
        return await self._run(operations.fetch_trajectory(key, layers, tokens, wait_s, out))

    async def fetch_trajectories(
        self,
        trajectory_ids: Iterable[str],
        *,
        layers: range | None = None,
        wait_s: float = 0.0,
        turns: Sequence[int] | None = None,
        requests: Sequence[Sequence[str]] | None = None,
        progress: bool = False,
        out: Buffer | None = None,
        on_missing: OnMissing | None = None,
    ) -> list[Trajectory]:
        """See `RouteStoreClient.fetch_trajectories`."""
        keys = operations.trajectory_keys(trajectory_ids, turns, requests)
        with progress_bar(len(keys), "trajectory", progress) as bar:
            return await self._run(
                operations.fetch_trajectories(keys, layers, wait_s, out, bar.update, on_missing)
            )

    async def get_request(self, request_id: str) -> dict[str, Any]:
        """See `RouteStoreClient.get_request`."""
        return await self._run(operations.describe_request(request_id))

    async def get_trajectory(self, trajectory_id: str) -> dict[str, Any]:
        """See `RouteStoreClient.get_trajectory`."""
        return await self._run(operations.describe_trajectory(trajectory_id))

    async def recent_requests(self, limit: int = 50) -> list[dict[str, Any]]:
        """See `RouteStoreClient.recent_requests`."""
        answer = await self._run(operations.read_json("/v1/requests", limit))
        found: list[dict[str, Any]] = answer["requests"]
        return found

    async def recent_trajectories(self, limit: int = 50) -> list[dict[str, Any]]:
        """See `RouteStoreClient.recent_trajectories`."""
        answer = await self._run(operations.read_json("/v1/trajectories", limit))
        found: list[dict[str, Any]] = answer["trajectories"]
        return found

    async def summary(self) -> dict[str, Any]:
        """See `RouteStoreClient.summary`."""
        return await self._run(operations.read_json("/v1/summary"))

    async def delete_request(self, request_id: str) -> None:
        """See `RouteStoreClient.delete_request`."""
        await self._run(operations.delete_request(request_id))

    async def delete_trajectory(self, trajectory_id: str) -> None:
        """See `RouteStoreClient.delete_trajectory`."""
        await self._run(operations.delete_trajectory(trajectory_id))

    async def aclose(self) -> None:
        """Close the connections."""
        await self._transport.aclose()

    async def __aenter__(self) -> AsyncRouteStoreClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def _run(self, operation: Operation[T]) -> T:
        try:
            call = next(operation)
            while True:
                call = operation.send(await self._send(call))
        except StopIteration as done:
            result: T = done.value
            return result

    async def _send(self, call: Call) -> Any:
        retry = Retry(self._attempts, self._deadline_s)
        while True:
            body = None
            try:
                body = await self._transport.send(call)
                return call.decode(body)
            except RouteReplayError as error:
                pause_s = retry.pause_after(error, answered=body is not None)
            await asyncio.sleep(pause_s)
