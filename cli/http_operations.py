"""docs/http-operations.md: every operation of the OpenAPI description, on one page."""

from __future__ import annotations

import inspect
from typing import Any

from routereplay.sidecar.api.openapi import described, kind_of
from routereplay.sidecar.app import create_app
from routereplay.sidecar.settings import Settings

_HEAD = """\
# HTTP operations

Made from the store's OpenAPI description by `python -m routereplay.cli.reference docs`; a store
shows its own at `/docs`, and as JSON at `/openapi.json`. What the operations and their errors mean:
[HTTP interface](http-api.md).
"""
_OBJECTS = """\
What the fields of frames and manifests mean is said at the [wire's classes](python.md#the-wire) of
the same name. Every object may gain fields; digests are base64."""
_TAGS = {
    "requests": "Requests",
    "trajectories": "Trajectories",
    "batches": "Batches",
    "overview": "Overview",
    "recorder": "From the recorder",
    "operation": "Operation of the store",
}


def operations_page() -> str:
    """Return docs/http-operations.md."""
    schema = described(create_app(Settings()), with_keys=True)
    by_tag: dict[str, list[str]] = {tag: [] for tag in _TAGS}
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            (tag,) = operation["tags"]
            by_tag[tag] += _operation(f"{method.upper()} {path}", operation)
    lines = [_HEAD]
    for tag, found in by_tag.items():
        lines += [f"## {_TAGS[tag]}", "", *found]
    lines += ["## Objects", "", _OBJECTS, ""]
    for name, found in sorted(schema["components"]["schemas"].items()):
        lines += _object(name, found)
    return "\n".join(lines)


def _operation(name: str, operation: dict[str, Any]) -> list[str]:
    rows = [_parameter(parameter) for parameter in operation.get("parameters", ())]
    for media, body in operation.get("requestBody", {}).get("content", {}).items():
        rows.append(("body", f"`{media}`", "", _link(body["schema"])))
    answers = dict(operation["responses"])
    for media, body in answers.pop("200")["content"].items():
        rows.append(("answer", f"`{media}`", "", _link(body["schema"])))
    errors = [f"{status} {answer['description']}" for status, answer in answers.items()]
    key = "" if operation["security"] else " Needs no key."
    lines = [f"### {name}", "", f"**{operation['summary']}.** {operation['description']}{key}", ""]
    lines += ["| | | default | |", "|---|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return [*lines, "", f"Errors: {'; '.join(errors)}.", ""]


def _parameter(parameter: dict[str, Any]) -> tuple[str, str, str, str]:
    schema = parameter["schema"]
    name = parameter["name"] if parameter["in"] == "query" else f"{{{parameter['name']}}}"
    default = schema.get("default")
    kind = kind_of(schema).replace("|", "\\|")
    return f"`{name}`", kind, "" if default is None else f"`{default}`", _said(parameter)


def _link(schema: dict[str, Any]) -> str:
    name = schema.get("$ref", "").rsplit("/", 1)[-1]
    return f"[{name}](#{name.lower()})" if name else ""


def _object(name: str, schema: dict[str, Any]) -> list[str]:
    lines = [f"### {name}", ""]
    if said := schema.get("description"):
        lines += [inspect.cleandoc(said), ""]
    lines += ["| field | kind | meaning |", "|---|---|---|"]
    for field, one in schema["properties"].items():
        kind = kind_of(one).replace("|", "\\|")
        optional = "" if field in schema.get("required", ()) else ", may be left out"
        lines.append(f"| `{field}` | {kind}{optional} | {_said(one)} |")
    return [*lines, ""]


def _said(found: dict[str, Any]) -> str:
    return str(found.get("description", "")).replace("|", "\\|").replace("\n", " ")
