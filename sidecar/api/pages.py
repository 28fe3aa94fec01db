"""The page at /: assembled once from `sidecar/page`, whole in one answer, without a network."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib import resources

from fastapi import APIRouter
from starlette.responses import HTMLResponse

router = APIRouter(include_in_schema=False)

_SCRIPTS = ("dom", "format", "api", "charts", "overview", "record", "compare", "main")


@router.get("/")
async def page() -> HTMLResponse:
    """Return the page; what it shows it reads from /v1, with the key that its user types in."""
    html, headers = assembled()
    return HTMLResponse(html, headers=headers)


@cache
def assembled() -> tuple[str, dict[str, str]]:
    """Return the page with its style and scripts in it, and headers that allow nothing else."""
    folder = resources.files("routereplay.sidecar") / "page"
    style = (folder / "style.css").read_text("utf-8")
    parts = [(folder / f"{name}.js").read_text("utf-8") for name in _SCRIPTS]
    script = '"use strict";\n(() => {\n' + "\n".join(parts) + "})();\n"
    html = (folder / "page.html").read_text("utf-8")
    html = html.replace("<style></style>", f"<style>{style}</style>")
    html = html.replace("<script></script>", f"<script>{script}</script>")
    return html, page_headers(style=source_of(style), script=source_of(script))


def page_headers(*, style: str, script: str) -> dict[str, str]:
    """Return headers under which a page runs only its own style and script, and asks only us."""
    policy = {
        "default-src": "'none'",
        "script-src": script,
        "style-src": style,
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        # No text ever becomes markup: the browser refuses innerHTML and its like.
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    return {
        "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cache-Control": "no-cache",
    }


def source_of(text: str) -> str:
    """Return the hash of an inline style or script, as a Content-Security-Policy names it."""
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"
