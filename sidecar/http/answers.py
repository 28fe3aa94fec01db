"""Problem documents, and whole answers for what never reaches the app."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import msgspec

from routereplay.wire.errors import HTTP_STATUS, RETRYABLE_CODES, RouteReplayError

PROBLEM_TYPE = "application/problem+json"


def problem_body(status: int, code: str, message: str, details: dict[str, Any]) -> bytes:
    """Return a problem document (RFC 9457)."""
    return msgspec.json.encode(
        {
            "type": f"urn:routereplay:error:{code}",
            "title": HTTPStatus(status).phrase,
            "status": status,
            "code": code,
            "message": message,
            "details": details,
        }
    )


def closing_answer(error: RouteReplayError) -> bytes:
    """Return a whole response that says that the connection ends."""
    status = HTTP_STATUS[type(error)]
    body = problem_body(status, error.code, error.message, error.details)
    lines = [
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
        f"content-type: {PROBLEM_TYPE}",
        f"content-length: {len(body)}",
        "connection: close",
    ]
    if error.code in RETRYABLE_CODES:
        lines.append("retry-after: 1")
    return "\r\n".join([*lines, "", ""]).encode() + body
