"""Errors as `application/problem+json` (RFC 9457), from the one table of the contract."""

from __future__ import annotations

import logging
import random
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Match, Route

from routereplay.sidecar.http.answers import PROBLEM_TYPE, problem_body
from routereplay.sidecar.runtime import Runtime
from routereplay.wire.errors import (
    HTTP_STATUS,
    RETRYABLE_CODES,
    BadRequest,
    RouteReplayError,
)

logger = logging.getLogger(__name__)

_RETRY_AFTER_MAX_S = 3


def status_of(error: type[RouteReplayError]) -> int:
    """Return the HTTP status of an error class; 500 for one that is not of the contract."""
    return HTTP_STATUS.get(error, 500)


def problem(status: int, code: str, message: str, details: dict[str, Any]) -> Response:
    """Return one problem; those that pass by themselves carry Retry-After."""
    headers = {}
    if code in RETRYABLE_CODES:
        # Spread, so that all recorders do not come back in the same second.
        headers["Retry-After"] = str(random.randint(1, _RETRY_AFTER_MAX_S))
    body = problem_body(status, code, message, details)
    return Response(body, status, headers, PROBLEM_TYPE)


def _allowed(request: Request) -> list[str]:
    """Return the methods that a path has; the router itself names those of one route of it."""
    routes = [route for route in request.app.routes if isinstance(route, Route)]
    found = [route.methods for route in routes if route.matches(request.scope)[0] != Match.NONE]
    return sorted({method for methods in found for method in methods or ()})


def install_handlers(app: FastAPI) -> None:
    """Answer every error, expected or not, with a problem."""

    async def known(request: Request, error: Exception) -> Response:
        if not isinstance(error, RouteReplayError):
            raise error
        runtime: Runtime = request.app.state.runtime
        runtime.metrics.errors.labels(error.code).inc()
        status = status_of(type(error))
        if status >= 500:
            logger.error("%s %s: %s", request.method, error.code, error.message)
        return problem(status, error.code, error.message, error.details)

    async def invalid(request: Request, error: Exception) -> Response:
        if not isinstance(error, RequestValidationError):
            raise error
        found = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        return await known(request, BadRequest(found))

    async def http(request: Request, error: Exception) -> Response:
        if not isinstance(error, HTTPException):
            raise error
        # Not `not_found`: that code says that the store never saw an id.
        code = "no_such_endpoint" if error.status_code == 404 else "http"
        message = f"{request.method} {request.url.path}: {error.detail}; see /docs"
        answer = problem(error.status_code, code, message, {})
        if error.status_code == 405:
            answer.headers["Allow"] = ", ".join(_allowed(request))
        return answer

    async def left(_: Request, __: Exception) -> Response:
        # Nobody is there to read it: the client left, or was sent away as too slow.
        return Response(status_code=499)

    async def unexpected(_: Request, error: Exception) -> Response:
        message = f"the store failed in a way it does not know: {type(error).__name__}"
        return problem(500, "internal", message, {})

    app.add_exception_handler(RouteReplayError, known)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(ClientDisconnect, left)
    app.add_exception_handler(Exception, unexpected)
