"""The page at /docs: the OpenAPI description for people, without a script or a network."""

from __future__ import annotations

import re
from html import escape
from importlib import resources
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse

from routereplay.sidecar.api.openapi import kind_of
from routereplay.sidecar.api.pages import page_headers, source_of

router = APIRouter(include_in_schema=False)

_STYLE = """
.operation { padding: 14px 0; border-bottom: 1px solid var(--line); }
.operation:last-child { border-bottom: 0; }
.operation p { margin: 4px 0 0; max-width: 75ch; }
.verb { display: inline-block; min-width: 58px; font: 600 12px var(--mono); color: var(--accent); }
.verb.delete { color: var(--bad); } .verb.post { color: var(--good); }
.operation table { margin-top: 8px; table-layout: fixed; min-width: 640px; }
.operation td:nth-child(1) { width: 18%; } .operation td:nth-child(2) { width: 34%; }
.operation td:nth-child(3) { width: 14%; }
"""


@router.get("/docs")
async def docs(request: Request) -> HTMLResponse:
    """Show every operation with its parameters, bodies and answers."""
    schema = request.app.openapi()
    by_tag: dict[str, list[str]] = {}
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            tag = operation.get("tags", ["other"])[0]
            by_tag.setdefault(tag, []).append(_operation(method, path, operation))
    cards = "".join(
        f'<section class="card" id="{escape(tag)}"><h2>{escape(tag)}</h2>{"".join(shown)}</section>'
        for tag, shown in by_tag.items()
    )
    style = (resources.files("routereplay.sidecar") / "page" / "style.css").read_text("utf-8")
    style += _STYLE
    html = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="color-scheme" '
        'content="light dark"><meta name="viewport" content="width=device-width">'
        f'<link rel="icon" href="data:,"><title>{escape(schema["info"]["title"])}</title>'
        f'<style>{style}</style><header><a class="brand" href="/"><span class="mark"></span>'
        f"routereplay</a></header><main><section class='card'><h1>HTTP interface "
        f"{escape(schema['info']['version'])}</h1><p>{_prose(schema['info']['description'])}</p>"
        '<p>Machine-readable: <a href="/openapi.json">/openapi.json</a></p></section>'
        f"{cards}{_objects(schema)}</main></html>"
    )
    return HTMLResponse(html, headers=page_headers(style=source_of(style), script="'none'"))


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    text = operation.get("description", "")
    rows = [_parameter(parameter) for parameter in operation.get("parameters", [])]
    body = operation.get("requestBody", {}).get("content", {})
    if body:
        rows.append(("body", *_content(body)))
    rows.append(("answer", *_content(operation["responses"]["200"]["content"])))
    cells = "".join(
        f"<tr><td><code>{escape(name)}</code></td><td>{escape(kind)}</td><td>{escape(default)}"
        f"</td><td>{_prose(said)}</td></tr>"
        for name, kind, default, said in rows
    )
    return (
        f'<div class="operation"><span class="verb {method}">{method.upper()}</span>'
        f"<code>{escape(path)}</code><p><b>{escape(operation.get('summary', ''))}</b></p>"
        f'<p class="soft">{_prose(text)}</p><div class="scroll"><table><tbody>{cells}</tbody>'
        "</table></div></div>"
    )


def _content(content: dict[str, Any]) -> tuple[str, str, str]:
    kinds = (one["schema"].get("$ref", "").rpartition("/")[2] for one in content.values())
    return ", ".join(content), "", " ".join(filter(None, kinds))


def _object(name: str, schema: dict[str, Any]) -> str:
    cells = "".join(
        f"<tr><td><code>{escape(field)}</code></td><td>{escape(kind_of(one))}</td>"
        f"<td>{'' if field in schema.get('required', ()) else 'optional'}</td>"
        f"<td>{_prose(one.get('description', ''))}</td></tr>"
        for field, one in schema["properties"].items()
    )
    said = _prose(schema.get("description", ""))
    return (
        f'<div class="operation"><p><b>{escape(name)}</b></p><p class="soft">{said}</p>'
        f'<div class="scroll"><table><tbody>{cells}</tbody></table></div></div>'
    )


def _parameter(parameter: dict[str, Any]) -> tuple[str, str, str, str]:
    schema = parameter.get("schema", {})
    kind = kind_of(schema)
    default = schema.get("default")
    name = parameter["name"] if parameter["in"] == "query" else f"{{{parameter['name']}}}"
    said = parameter.get("description", schema.get("description", ""))
    return name, kind, "" if default is None else f"default {default}", said


def _prose(text: str) -> str:
    """Return a text of docstrings: escaped, with what stands in backticks as code."""
    return re.sub("`([^`]+)`", r"<code>\1</code>", escape(text))


def _objects(schema: dict[str, Any]) -> str:
    found = sorted(schema["components"]["schemas"].items())
    shown = "".join(_object(name, one) for name, one in found)
    return f'<section class="card" id="objects"><h2>objects</h2>{shown}</section>'
