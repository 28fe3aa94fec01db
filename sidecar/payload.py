"""The payload of an answer: read and hashed once, then sent from where it is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import numpy as np

from routereplay.sidecar.reading import INLINE_BYTES, Tokens, read_rows, read_tokens
from routereplay.sidecar.ready import Ready
from routereplay.sidecar.room import Room
from routereplay.sidecar.slices import Piece, pieces, placed
from routereplay.sidecar.store.base import Blobs
from routereplay.sidecar.store.windows import WINDOW_BYTES, windows
from routereplay.wire.digest import Buffer, RunningDigest, digest
from routereplay.wire.errors import CorruptRecord, RouteReplayError, RoutesExpired
from routereplay.wire.frame import aligned, padding

KEEP_BYTES = 64 * 1024 * 1024
"""Longest payload that is kept between hashing and sending; of a longer one rows are read twice."""

_room = Room(4 * KEEP_BYTES)

_STREAMED_BYTES = 64 * 1024 * 1024
"""What all answers that are read as they are sent may hold; a slow reader holds its window
for minutes, and there may be a thousand."""
_LEAST_WINDOW_BYTES = 256 * 1024

_streaming = 0
"""How many there are."""


def _window_bytes() -> int:
    share = _STREAMED_BYTES // max(_streaming, 1)
    return max(min(share, WINDOW_BYTES), _LEAST_WINDOW_BYTES)


class Payload:
    """Rows and token ids of items, in order, each 64-aligned.

    Rows of all items are read side by side, into the memory that is sent.
    """

    def __init__(self, blobs: Blobs, items: Sequence[Ready]) -> None:
        self._blobs = blobs
        self._items = items
        self.offsets: list[tuple[int, int]] = []
        """Where each item's rows and tokens begin."""
        offset = 0
        for ready in items:
            tokens_at = aligned(offset + ready.nbytes)
            self.offsets.append((offset, tokens_at))
            offset = aligned(tokens_at + ready.tokens_nbytes)
        self.nbytes = offset
        self.kept: memoryview | None = None
        """All of it, if it is not too long to be kept."""

    async def load(self) -> dict[int, RouteReplayError]:
        """Read all rows and set their digests; return the error of each item that has one.

        Token ids that were not read yet come with the first of the rows.
        """
        kept = _room.take(self.nbytes) if self.nbytes <= KEEP_BYTES else None
        if kept is None:
            return await self._hash()
        wanted: list[Piece] = []
        missing: list[Tokens] = []
        for number, (ready, (rows_at, tokens_at)) in enumerate(self._placed()):
            for part in ready.parts:
                wanted += pieces(part, kept[rows_at:], number)
                rows_at += part.nbytes
            if rows_at < tokens_at:
                kept[rows_at:tokens_at] = bytes(tokens_at - rows_at)
            if ready.padded_tokens is not None:
                kept[tokens_at : tokens_at + len(ready.padded_tokens)] = ready.padded_tokens
            else:
                stop = tokens_at + ready.tokens_nbytes
                kept[stop : aligned(stop)] = padding(stop)
                missing.append(Tokens(ready.key, ready.record, kept[tokens_at:stop], number))
        errors = await read_rows(self._blobs, wanted, missing)
        if errors:
            return errors
        for tokens in missing:
            start = self.offsets[tokens.owner][1]
            filled = kept[start : start + aligned(len(tokens.into))].toreadonly()
            self._items[tokens.owner].padded_tokens = filled
        for ready, (rows_at, _) in self._placed():
            await _hash_rows(ready, kept[rows_at : rows_at + ready.nbytes])
        self.kept = kept.toreadonly()
        return {}

    async def rows(self, number: int) -> AsyncIterator[Buffer]:
        """Yield the rows of an item."""
        ready, (rows_at, _) = self._items[number], self.offsets[number]
        if self.kept is not None:
            yield self.kept[rows_at : rows_at + ready.nbytes]
            return
        async for buffer in self._read(ready):
            yield buffer

    async def stream(self) -> AsyncIterator[Buffer]:
        """Yield all of it."""
        if self.kept is not None:
            yield self.kept
            return
        for ready in self._items:
            async for buffer in self._read(ready):
                yield buffer
                del buffer
            yield padding(ready.nbytes)
            if ready.padded_tokens is not None:
                yield ready.padded_tokens

    def _placed(self) -> list[tuple[Ready, tuple[int, int]]]:
        return list(zip(self._items, self.offsets, strict=True))

    async def _hash(self) -> dict[int, RouteReplayError]:
        """Read rows that are too many to keep, for their digests."""
        missing = [n for n, ready in enumerate(self._items) if ready.padded_tokens is None]
        sources = [(self._items[n].key, self._items[n].record) for n in missing]
        for number, tokens in zip(missing, await read_tokens(self._blobs, sources), strict=True):
            if isinstance(tokens, RouteReplayError):
                return {number: tokens}
            self._items[number].padded_tokens = tokens
        for number, ready in enumerate(self._items):
            hasher = RunningDigest()
            try:
                async for buffer in self._read(ready):
                    if not ready.is_whole:
                        await asyncio.to_thread(hasher.update, buffer)
            except (CorruptRecord, RoutesExpired) as error:
                return {number: error}
            if not ready.is_whole:
                ready.rows_digest = hasher.digest()
        return {}

    async def _read(self, ready: Ready) -> AsyncIterator[Buffer]:
        global _streaming
        _streaming += 1
        try:
            for window in windows(ready.pieces, lambda piece: piece.nbytes, _window_bytes):
                # Bound to no name here: it is gone before the next one is made.
                yield await self._rows_of(window)
        finally:
            _streaming -= 1

    async def _rows_of(self, window: list[Piece]) -> memoryview:
        memory = np.empty(sum(piece.nbytes for piece in window), np.uint8)
        for error in (await read_rows(self._blobs, placed(window, memory.data))).values():
            raise error
        return memory.data


async def _hash_rows(ready: Ready, rows: memoryview) -> None:
    if ready.is_whole:
        # Every chunk was verified, and is sent as it was recorded.
        return
    if len(rows) > INLINE_BYTES:
        ready.rows_digest = await asyncio.to_thread(digest, rows)
    else:
        ready.rows_digest = digest(rows)
