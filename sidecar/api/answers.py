"""Routes as a frame, as `.npz`, or as JSON."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import numpy as np
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from routereplay.sidecar import fetch
from routereplay.sidecar.api.params import Format
from routereplay.sidecar.metrics import Metrics
from routereplay.sidecar.ready import sources_of
from routereplay.sidecar.views import RoutesItemView, RoutesView
from routereplay.wire.codec import read_rows
from routereplay.wire.errors import BadRequest
from routereplay.wire.version import MEDIA_TYPE

MAX_CONVERTED_BYTES = 64 * 1024 * 1024
"""Routes that are converted to npz or JSON; longer ones go out as a frame only."""

_JOIN_BYTES = 64 * 1024


async def answer(found: fetch.Response, form: Format, metrics: Metrics) -> Response:
    """Return what was found in the form that was asked for."""
    if form == "routes":
        return await _frame(found, metrics)
    nbytes = sum(ready.nbytes for ready in found.items)
    if nbytes > MAX_CONVERTED_BYTES:
        msg = (
            f"{nbytes} bytes of routes are too many for format={form} (at most "
            f"{MAX_CONVERTED_BYTES}); narrow tokens= or layers=, or leave out format="
        )
        raise BadRequest(msg)
    arrays = [await _rows(found, number) for number in range(len(found.items))]
    if form == "npz":
        body = await asyncio.to_thread(_npz, found, arrays)
        return Response(body, media_type="application/zip")
    body = await asyncio.to_thread(_json, found, arrays)
    return Response(body, media_type="application/json")


async def _frame(found: fetch.Response, metrics: Metrics) -> Response:
    head, payload_bytes = found.head()
    length = len(head) + payload_bytes
    metrics.sent_bytes.inc(length)
    if found.kept is not None:
        return _Kept(head, found.kept)

    async def body() -> AsyncIterator[bytes | memoryview]:
        # An error from here on ends the connection short of Content-Length: no client
        # can take what it has for an answer.
        yield head
        async for buffer in found.payload():
            yield memoryview(buffer)
            del buffer

    headers = {"Content-Length": str(length)}
    return StreamingResponse(body(), headers=headers, media_type=MEDIA_TYPE)


class _Kept(Response):
    """Head and payload, sent from where they are: joining them would copy every byte."""

    media_type = MEDIA_TYPE

    def __init__(self, head: bytes, payload: memoryview) -> None:
        super().__init__(headers={"Content-Length": str(len(head) + len(payload))})
        self._parts = (head, payload)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send both."""
        await send(
            {
                "type": "http.response.start",
                "status": self.status_code,
                "headers": self.raw_headers,
            }
        )
        head, payload = self._parts
        if len(payload) <= _JOIN_BYTES:
            # A call of the kernel more costs more than this copy.
            await send({"type": "http.response.body", "body": head + payload})
            return
        await send({"type": "http.response.body", "body": head, "more_body": True})
        await send({"type": "http.response.body", "body": payload})


async def _rows(found: fetch.Response, number: int) -> np.ndarray:
    """Return an item's rows, `[tokens, layers, topk]`."""
    ready = found.items[number]
    rows = b"".join([bytes(buffer) async for buffer in found.rows(number)])
    manifest = ready.manifest
    return read_rows(rows, manifest.dtype, ready.layers, manifest.topk, manifest.num_experts)


def _npz(found: fetch.Response, arrays: list[np.ndarray]) -> bytes:
    """Return arrays `experts`, `token_ids`, `token_start`, `layer_start`.

    In a trajectory each name carries the index of its turn among the sealed ones,
    `experts_0`, with `parent_0` beside it: -1 for a turn that no other supplies.
    """
    named: dict[str, Any] = {}
    for number, (ready, rows) in enumerate(zip(found.items, arrays, strict=True)):
        suffix = f"_{number}" if found.trajectories else ""
        named[f"experts{suffix}"] = rows
        named[f"token_ids{suffix}"] = np.frombuffer(ready.tokens, "<i4")
        named[f"token_start{suffix}"] = np.int64(ready.token_start)
        named[f"layer_start{suffix}"] = np.int64(ready.layer_start)
        if found.trajectories:
            named[f"parent{suffix}"] = np.int64(-1 if ready.parent is None else ready.parent)
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **named)
    return file.getvalue()


def _json(found: fetch.Response, arrays: list[np.ndarray]) -> bytes:
    items: list[RoutesItemView] = [
        {
            "manifest": ready.manifest,
            "token_start": ready.token_start,
            "layer_start": ready.layer_start,
            "parent": ready.parent,
            "sources": sources_of(ready),
            "token_ids": np.frombuffer(ready.tokens, "<i4").tolist(),
            "experts": rows.tolist(),
        }
        for ready, rows in zip(found.items, arrays, strict=True)
    ]
    view = RoutesView(items=items, trajectories=found.trajectories, failures=found.failures)
    return msgspec.json.encode(view)
