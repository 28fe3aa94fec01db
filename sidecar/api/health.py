"""Is it alive, is it ready, what is it, what does it count."""

from __future__ import annotations

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from routereplay.sidecar.api.params import json_answer, principal_of, runtime_of
from routereplay.sidecar.errors import EngineMisconfigured
from routereplay.sidecar.version import package_version
from routereplay.wire.errors import StoreUnavailable
from routereplay.wire.version import WIRE_VERSION

router = APIRouter(tags=["operation"])

_LIMITS = (
    "ttl_s",
    "staging_ttl_s",
    "tombstone_ttl_s",
    "value_bytes",
    "max_body_bytes",
    "max_inflight_bytes",
    "max_wait_s",
    "max_fetch_ids",
)


@router.get("/livez", summary="The process answers")
async def livez() -> Response:
    """Answer 200 whatever the engine does: restarting us would not heal it."""
    return json_answer({"status": "alive"})


@router.get("/readyz", summary="The engine answers and keeps what it is given")
async def readyz(request: Request) -> Response:
    """Answer 200, or 503 with what is wrong with the engine."""
    try:
        await runtime_of(request).check()
    except (EngineMisconfigured, StoreUnavailable) as error:
        # A probe without a key learns yes or no.
        known = principal_of(request) is not None
        raise StoreUnavailable(error.message if known else "not ready") from error
    return json_answer({"status": "ready"})


@router.get("/metrics", summary="Prometheus metrics")
async def metrics(request: Request) -> Response:
    """Return the metrics in the Prometheus text format."""
    body = runtime_of(request).metrics.render()
    return Response(body, media_type=CONTENT_TYPE_LATEST)


@router.get("/v1/info", summary="Versions, limits and the engine")
async def info(request: Request) -> Response:
    """Return what a client or an operator needs to know of this store."""
    runtime = runtime_of(request)
    settings = runtime.settings
    return json_answer(
        {
            "version": package_version(),
            "wire_version": WIRE_VERSION,
            "durability": settings.durability,
            "limits": {name: getattr(settings, name) for name in _LIMITS},
            "engine": {"kind": runtime.engine_kind, **await runtime.engine_info()},
        }
    )
