"""The page at / and the page at /docs; both work without a network."""

from __future__ import annotations

from html import escape
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse

from routereplay.sidecar.api.params import runtime_of
from routereplay.sidecar.version import package_version
from routereplay.wire.errors import RouteReplayError

router = APIRouter(include_in_schema=False)

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:3rem auto;padding:0 1rem;"
    "color-scheme:light dark}table{border-collapse:collapse}td,th{text-align:left;"
    "padding:.2rem 1.2rem .2rem 0;vertical-align:top}code{font-family:ui-monospace,monospace}"
)
_HEADERS = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}


@router.get("/")
async def index(request: Request) -> HTMLResponse:
    """Show whether the store is ready, what its engine holds, and where to go."""
    runtime = runtime_of(request)
    facts: dict[str, object] = {"version": package_version()}
    try:
        await runtime.check()
        facts |= {"state": "ready", "engine": runtime.engine_kind}
        facts |= await runtime.engine_info()
    except RouteReplayError as error:
        facts["state"] = f"not ready: {error.message}"
    rows = [(escape(str(name)), escape(str(value))) for name, value in facts.items()]
    links = " · ".join(
        f'<a href="{path}">{path}</a>' for path in ("/docs", "/v1/info", "/metrics", "/readyz")
    )
    return _page("routereplay route store", _table(rows) + f"<p>{links}</p>")


@router.get("/docs")
async def docs(request: Request) -> HTMLResponse:
    """List the endpoints of the OpenAPI description."""
    rows = [
        (
            f"<code>{method.upper()} {escape(path)}</code>",
            f"{escape(operation.get('summary', ''))}<br><small>{_parameters(operation)}</small>",
        )
        for path, operations in request.app.openapi()["paths"].items()
        for method, operation in operations.items()
    ]
    link = '<p>Machine-readable: <a href="/openapi.json">/openapi.json</a></p>'
    return _page("routereplay HTTP API", _table(rows) + link)


def _parameters(operation: dict[str, Any]) -> str:
    names = [p["name"] for p in operation.get("parameters", []) if p["in"] == "query"]
    return escape("?" + "&".join(names)) if names else ""


def _table(rows: list[tuple[str, str]]) -> str:
    cells = "".join(f"<tr><td>{name}</td><td>{value}</td></tr>" for name, value in rows)
    return f"<table>{cells}</table>"


def _page(title: str, body: str) -> HTMLResponse:
    html = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style><h1>{title}</h1>{body}</html>"
    )
    return HTMLResponse(html, headers=_HEADERS)
