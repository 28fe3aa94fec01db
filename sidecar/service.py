"""The use cases of the route store. Knows no HTTP and no Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeAlias

from routereplay.sidecar.ancestry import Ancestry
from routereplay.sidecar.describe import (
    RequestState,
    TrajectoryState,
    describe_request,
    describe_trajectory,
)
from routereplay.sidecar.fetch import Response
from routereplay.sidecar.ingest import Ingest
from routereplay.sidecar.lookup import (
    Gone,
    Lookup,
    never_gone,
    settled,
    state_error,
    wait_for,
)
from routereplay.sidecar.slices import Range, Slice
from routereplay.sidecar.store import parts
from routereplay.sidecar.store.base import Blobs, Index, RecordKey, RecordStatus
from routereplay.wire.digest import Buffer
from routereplay.wire.errors import (
    BadRequest,
    RouteReplayError,
    StoreFull,
    StoreUnavailable,
)
from routereplay.wire.frame import Frame
from routereplay.wire.ids import normalize_id
from routereplay.wire.records import FetchRequest, IngestResult, RequestKey, TrajectoryKey

_Found: TypeAlias = tuple[RecordStatus, list[Slice]]
"""A sealed record, and where the rows are that were asked for."""


class RouteStore:
    """Stages, seals, serves and deletes the routes of one namespace over an index and its blobs.

    It holds nothing but what it is given, and serves any number of requests.
    """

    def __init__(
        self,
        blobs: Blobs,
        index: Index,
        *,
        namespace: str,
        value_bytes: int,
        staging_ttl_s: int,
        max_wait_s: float,
        max_fetch_ids: int,
    ) -> None:
        self._blobs = blobs
        self._index = index
        self._lookup = Lookup(index, namespace)
        self._ancestry = Ancestry(blobs, index)
        self._ingest = Ingest(
            blobs,
            index,
            self._ancestry,
            namespace=namespace,
            value_bytes=value_bytes,
            staging_ttl_s=staging_ttl_s,
        )
        self._max_wait_s = max_wait_s
        self._max_fetch_ids = max_fetch_ids

    async def ingest(self, body: Buffer) -> tuple[IngestResult, list[Frame]]:
        """Store the frames of one body; see `Ingest.ingest`."""
        return await self._ingest.ingest(body)

    async def describe_request(self, request_id: str) -> RequestState:
        """Return every choice of a request with its state; raise if nothing is left of it."""
        found = await self._lookup.request(request_id)
        _require_present(found)
        return describe_request(found)

    async def describe_trajectory(self, trajectory_id: str) -> TrajectoryState:
        """Return the turns of a trajectory; raise if nothing is left of it."""
        found = await self._lookup.trajectory(trajectory_id)
        _require_present(found)
        return describe_trajectory(normalize_id(trajectory_id), found)

    async def fetch_request(
        self,
        request_id: str,
        choice: int,
        *,
        tokens: Range | None = None,
        layers: Range | None = None,
        wait_s: float = 0.0,
        gone: Gone = never_gone,
    ) -> Response:
        """Return the routes of one choice, as soon as they are sealed.

        Of a delta too: the rows before its own are read from the records that have them.
        """
        response = Response(self._blobs)
        found = await self._sealed(
            self._lookup, RequestKey(id=request_id, choice=choice), tokens, layers, wait_s, gone
        )
        response.add_record(*found)
        await response.load()
        return response

    async def fetch_trajectory(
        self,
        wanted: TrajectoryKey,
        *,
        tokens: Range | None = None,
        layers: Range | None = None,
        wait_s: float = 0.0,
        gone: Gone = never_gone,
    ) -> Response:
        """Return the new rows of each sealed turn, once what is wanted is there and none pends."""
        response = Response(self._blobs)
        turns = await self._settled(self._lookup, wanted, wait_s, gone)
        (token_ids,) = await response.token_ids([turns])
        await response.add_trajectory(normalize_id(wanted.id), turns, token_ids, tokens, layers)
        await response.load()
        return response

    async def fetch_batch(self, request: FetchRequest, *, gone: Gone = never_gone) -> Response:
        """Return many requests and trajectories; what fails is listed and fails nothing else.

        Raises:
            BadRequest: too many ids, or none, or a wait that is no time.
            StoreUnavailable, StoreFull: the engine is away, for all of them.
        """
        count = len(request.requests) + len(request.trajectories)
        if not 1 <= count <= self._max_fetch_ids:
            msg = f"a fetch of {count} ids; expected 1 to {self._max_fetch_ids}"
            raise BadRequest(msg)
        wait_s = self._wait(request.wait)
        response = Response(self._blobs)
        cuts = (request.tokens, request.layers)
        trajectories = [
            TrajectoryKey(id=one) if isinstance(one, str) else one for one in request.trajectories
        ]
        lookup = await self._lookup.ahead(
            [key.id for key in request.requests], [one.id for one in trajectories]
        )
        waits: list[Awaitable[_Found | list[RecordStatus]]] = [
            *(self._sealed(lookup, key, *cuts, wait_s, gone) for key in request.requests),
            *(self._settled(lookup, wanted, wait_s, gone) for wanted in trajectories),
        ]
        # Side by side, so the batch waits as long as its slowest id and no longer.
        found = await asyncio.gather(*waits, return_exceptions=True)
        names = [*(key.id for key in request.requests), *(one.id for one in trajectories)]
        token_ids = iter(
            await response.token_ids(known for known in found if isinstance(known, list))
        )
        for name, known in zip(names, found, strict=True):
            try:
                if isinstance(known, BaseException):
                    raise known
                if isinstance(known, list):
                    await response.add_trajectory(normalize_id(name), known, next(token_ids), *cuts)
                else:
                    response.add_record(*known, name=name)
            except (StoreUnavailable, StoreFull):
                raise
            except RouteReplayError as error:
                response.add_failure(name, error)
        await response.load(failures_are_listed=True)
        return response

    async def delete_request(self, request_id: str) -> list[RecordKey]:
        """Delete every choice of a request; return which there were."""
        return await self._delete(await self._lookup.request(request_id))

    async def delete_trajectory(self, trajectory_id: str) -> list[RecordKey]:
        """Delete every turn of a trajectory; return which there were."""
        return await self._delete(await self._lookup.trajectory(trajectory_id))

    async def _delete(self, found: list[RecordStatus]) -> list[RecordKey]:
        present = _require_present(found)
        for status in present:
            await self._index.delete(status, await self._blob_keys(status))
        return [status.key for status in present]

    async def _blob_keys(self, status: RecordStatus) -> list[str]:
        key, record = status.key, status.record
        if record is not None:
            return [part.key for part in parts.record_parts(key, record)]
        staged = await self._index.staged(key.tag, status.upload_id)
        return [
            part.key
            for seq, chunk in staged.items()
            for part in parts.chunk_parts(key.tag, status.upload_id, seq, chunk, chunk.layout)
        ]

    async def _sealed(
        self,
        lookup: Lookup,
        key: RequestKey,
        tokens: Range | None,
        layers: Range | None,
        wait_s: float,
        gone: Gone,
    ) -> _Found:
        async def look() -> _Found:
            status = await lookup.sealed(key.id, key.choice)
            return status, await self._ancestry.slices(status, tokens, layers)

        # An ancestor may be on its way too: it is waited for alike.
        return await wait_for(look, wait_s=self._wait(wait_s), gone=gone)

    async def _settled(
        self, lookup: Lookup, wanted: TrajectoryKey, wait_s: float, gone: Gone
    ) -> list[RecordStatus]:
        return await wait_for(
            lambda: lookup.whole(wanted),
            wait_s=self._wait(wait_s),
            done=settled,
            gone=gone,
        )

    def _wait(self, wait_s: float) -> float:
        if not wait_s >= 0:
            msg = f"wait of {wait_s} seconds; expected 0 to {self._max_wait_s}"
            raise BadRequest(msg)
        return min(wait_s, self._max_wait_s)


def _require_present(found: list[RecordStatus]) -> list[RecordStatus]:
    """Return what is sealed or on its way, or raise what became of it."""
    present = [status for status in found if status.state in ("sealed", "pending")]
    if not present:
        raise state_error(found[0])
    return present
