"""How fast a store is from here: records are sent, fetched and deleted over one set of calls.

The rows are random, so nothing on the way can make them smaller, and what is fetched is
compared with what was sent.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from tqdm.auto import tqdm

from routereplay.client import RouteStoreClient
from routereplay.client._operations import Call
from routereplay.client._transport import BlockingTransport
from routereplay.wire import Chunk, ChunkRef, RecordManifest, Seal, digest, dtype_for, frame_bytes
from routereplay.wire.errors import CorruptRecord, RouteReplayError, error_from_wire

_CHUNK_BYTES = 1024 * 1024
_PROMPT_SHARE = 4
"""One token in four is of the prompt."""


@dataclass(frozen=True)
class Shape:
    """Sizes of what is sent."""

    layers: int
    topk: int
    experts: int
    tokens: int
    records: int
    parallel: int


@dataclass(frozen=True)
class Phase:
    """What a phase took: seconds of the whole, and of each call."""

    nbytes: int
    seconds: float
    calls: list[float]

    def summary(self) -> dict[str, float]:
        """Return bytes a second and quantiles of the calls, in seconds."""
        p50, p99 = np.quantile(self.calls, [0.5, 0.99])
        return {
            "bytes_per_s": self.nbytes / self.seconds,
            "p50_s": float(p50),
            "p99_s": float(p99),
            "calls": len(self.calls),
        }


def bench(store: str, shape: Shape) -> dict[str, dict[str, float]]:
    """Send, fetch and delete `shape.records` records; return a summary of each phase.

    Raises:
        RouteReplayError: the store cannot be reached, refused a record, or changed one.
    """
    rows_TLK = _rows(shape)
    run = f"bench-{uuid.uuid4().hex[:12]}"
    names = [f"{run}-{number}" for number in range(shape.records)]
    transport = BlockingTransport(store, None, 60.0, None)
    try:
        with RouteStoreClient(store) as client, ThreadPoolExecutor(shape.parallel) as threads:
            bodies = {name: _body(name, run, rows_TLK, shape) for name in names}
            try:
                sent = _phase("ingest", names, threads, lambda name: _send(transport, bodies[name]))
                fetched = _phase(
                    "fetch", names, threads, lambda name: _fetch(client, name, rows_TLK)
                )
            finally:
                deleted = _phase("delete", names, threads, lambda name: _delete(client, name))
    finally:
        transport.close()
    phases = {"ingest": sent, "fetch": fetched, "delete": deleted}
    return {name: phase.summary() for name, phase in phases.items()}


def _phase(
    name: str, ids: list[str], threads: ThreadPoolExecutor, call: Callable[[str], int]
) -> Phase:
    def timed(item: str) -> tuple[int, float]:
        begin = time.perf_counter()
        return call(item), time.perf_counter() - begin

    begin = time.perf_counter()
    results = list(tqdm(threads.map(timed, ids), name, len(ids), unit="record", disable=None))
    seconds = time.perf_counter() - begin
    return Phase(sum(nbytes for nbytes, _ in results), seconds, [took for _, took in results])


def _send(transport: BlockingTransport, body: bytes) -> int:
    answer: dict[str, Any] = msgspec.json.decode(
        transport.send(Call("POST", "/v1/ingest", body=body))
    )
    refused = [result for result in answer["results"] if result["status"] == "refused"]
    if refused:
        raise error_from_wire(refused[0]["code"], refused[0]["message"], {})
    return len(body)


def _fetch(client: RouteStoreClient, name: str, rows_TLK: np.ndarray) -> int:
    routes = client.fetch_request(name)
    if not np.array_equal(routes.experts, rows_TLK):
        msg = f"{name}: the store's rows are not those that were sent"
        raise CorruptRecord(msg)
    return routes.experts.nbytes + routes.token_ids.nbytes


def _delete(client: RouteStoreClient, name: str) -> int:
    # A key may not be allowed to; and what was never sent cannot be deleted.
    with contextlib.suppress(RouteReplayError):
        client.delete_request(name)
    return 0


def _rows(shape: Shape) -> np.ndarray:
    draw = np.random.default_rng(0)
    size = (shape.tokens - 1, shape.layers, shape.topk)
    return draw.integers(0, shape.experts, size).astype(dtype_for(shape.experts))


def _body(name: str, run: str, rows_TLK: np.ndarray, shape: Shape) -> bytes:
    prompt = shape.tokens // _PROMPT_SHARE
    token_ids = np.arange(shape.tokens, dtype="<i4")
    chunks = list(_chunks(rows_TLK))
    manifest = RecordManifest(
        request_id=name,
        choice=0,
        model="routereplay bench",
        num_layers=shape.layers,
        topk=shape.topk,
        num_experts=shape.experts,
        dtype=dtype_for(shape.experts),
        prompt_len=prompt,
        completion_len=shape.tokens - prompt,
        rows=len(rows_TLK),
        finish_reason="stop",
        engine_id=run,
        started_at=time.time(),
        chunks=tuple(ChunkRef(len(rows), rows.nbytes, digest(rows.data)) for _, rows in chunks),
        token_digest=digest(token_ids.data),
    )
    frames = [
        frame_bytes(
            Chunk(
                upload_id=name,
                request_id=name,
                choice=0,
                seq=seq,
                first_row=first,
                rows=len(rows),
                num_layers=shape.layers,
                topk=shape.topk,
                num_experts=shape.experts,
                dtype=dtype_for(shape.experts),
                digest=ref.digest,
            ),
            [rows.data],
        )
        for seq, ((first, rows), ref) in enumerate(zip(chunks, manifest.chunks, strict=True))
    ]
    seal = frame_bytes(Seal(upload_id=name, manifest=manifest), [token_ids.data])
    return b"".join([*frames, seal])


def _chunks(rows_TLK: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    step = max(_CHUNK_BYTES // rows_TLK[0].nbytes, 1)
    for first in range(0, len(rows_TLK), step):
        yield first, rows_TLK[first : first + step]
