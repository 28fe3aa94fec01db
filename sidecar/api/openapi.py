"""The OpenAPI description: what FastAPI derives, and what it cannot know of our answers."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from routereplay.sidecar.api.schemas import body_of, components, responses_of
from routereplay.sidecar.auth.middleware import OPEN_PATHS

_DESCRIPTION = (
    "Routes of mixture-of-experts models: recorded by vLLM, sealed here, replayed in training. "
    "Everything below /v1 keeps its meaning while the path does. Answers of 400 and above are "
    "problem documents (RFC 9457) with a stable `code`."
)
_KEY = {
    "type": "http",
    "scheme": "bearer",
    "description": "A key of `routereplay keys new`.",
}


def install_openapi(app: FastAPI, *, with_keys: bool) -> None:
    """Let `app` describe itself with its real bodies, media types and errors."""

    def describe() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = described(app, with_keys=with_keys)
        return app.openapi_schema

    # FastAPI's documented way to extend its description.
    app.openapi = describe  # type: ignore[method-assign]


def described(app: FastAPI, *, with_keys: bool) -> dict[str, Any]:
    """Return the description of a store that has keys, or that has none."""
    schema = get_openapi(
        title=app.title, version=app.version, description=_DESCRIPTION, routes=app.routes
    )
    schema["components"] = {"schemas": components()}
    if with_keys:
        schema["components"]["securitySchemes"] = {"key": _KEY}
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            is_open = path in OPEN_PATHS or not with_keys
            operation["security"] = [] if is_open else [{"key": []}]
            operation["responses"] = responses_of((method, path), with_keys=not is_open)
            body = body_of((method, path))
            if body is not None:
                operation["requestBody"] = {"required": True, "content": body}
    return schema


def kind_of(schema: dict[str, Any]) -> str:
    """Return what a schema allows, in a few words: `integer`, `[string]`, `a | b`."""
    if reference := schema.get("$ref"):
        return str(reference).rsplit("/", 1)[-1]
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    if options := schema.get("anyOf"):
        return " or ".join(kind_of(one) for one in options if one.get("type") != "null")
    if schema.get("type") == "array":
        parts = schema.get("prefixItems") or [schema.get("items", {})]
        return f"[{', '.join(kind_of(part) for part in parts)}]"
    return str(schema.get("contentEncoding", schema.get("type", "any")))
