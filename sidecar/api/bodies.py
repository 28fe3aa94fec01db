"""Reads a request's body within limits that are checked before the first byte of it."""

from __future__ import annotations

import numpy as np
from starlette.requests import Request

from routereplay.sidecar.http.receiving import EXTENSION
from routereplay.wire.errors import BadRequest, LengthRequired, TooLarge


def content_length(request: Request, max_bytes: int) -> int:
    """Return the announced length of the body.

    Raises:
        LengthRequired: it is not announced.
        TooLarge: it is over `max_bytes`.
    """
    text = request.headers.get("content-length")
    if text is None:
        msg = "a body needs Content-Length: the store decides by it before it reads"
        raise LengthRequired(msg)
    length = int(text) if text.isascii() and text.isdigit() else -1
    if length < 0:
        msg = f"Content-Length {text[:40]!r} is not a length"
        raise BadRequest(msg)
    if length > max_bytes:
        msg = f"a body of {length} bytes; at most {max_bytes} are taken. Send fewer frames at once."
        raise TooLarge(msg, length=length, max_bytes=max_bytes)
    return length


async def read_body(request: Request, length: int) -> memoryview:
    """Return the body, received into one buffer of its announced length.

    Raises:
        BadRequest: it is shorter or longer than announced.
        ClientDisconnect: the client left.
    """
    body = np.empty(length, np.uint8).data
    receive_into = request.scope.get("extensions", {}).get(EXTENSION)
    if receive_into is not None:
        await receive_into(body)
        return body
    offset = 0
    async for piece in request.stream():
        if offset + len(piece) > length:
            msg = f"a body of more than the {length} bytes that were announced"
            raise BadRequest(msg)
        body[offset : offset + len(piece)] = piece
        offset += len(piece)
    if offset != length:
        msg = f"a body of {offset} bytes where {length} were announced"
        raise BadRequest(msg)
    return body
