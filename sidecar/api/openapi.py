"""The OpenAPI description: what FastAPI derives, and what it cannot know of our answers."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from routereplay.sidecar.api.schemas import FETCH_BODY, answer_schema, components, reference
from routereplay.sidecar.auth.middleware import OPEN_PATHS
from routereplay.wire.errors import HTTP_STATUS
from routereplay.wire.version import MEDIA_TYPE

_DESCRIPTION = (
    "Routes of mixture-of-experts models: recorded by vLLM, sealed here, replayed in training. "
    "Everything below /v1 keeps its meaning while the path does. Answers of 400 and above are "
    "problem documents (RFC 9457) with a stable `code`."
)
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_ROUTES = {MEDIA_TYPE: _BINARY, "application/zip": _BINARY, "application/json": {"schema": {}}}
_PROBLEM = {
    "type": "object",
    "required": ["type", "title", "status", "code", "message", "details"],
    "properties": {
        "type": {"type": "string", "description": "`urn:routereplay:error:CODE`"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "code": {
            "type": "string",
            "enum": sorted(
                {error.code for error in HTTP_STATUS} | {"no_such_endpoint", "http", "internal"}
            ),
        },
        "message": {"type": "string", "description": "what was found, expected, and to be done"},
        "details": {"type": "object"},
    },
}
_PROBLEM_REFERENCE = {"$ref": "#/components/schemas/Problem"}
_KEY = {
    "type": "http",
    "scheme": "bearer",
    "description": "A key of `routereplay keys new`, where the store has keys.",
}
_CONTENT: dict[str, dict[str, Any]] = {
    "/metrics": {"text/plain": {"schema": {"type": "string"}}},
    "/v1/fetch": {MEDIA_TYPE: _BINARY},
    "/v1/requests/{request_id}/routes": _ROUTES,
    "/v1/trajectories/{trajectory_id}/routes": _ROUTES,
}
_BODIES: dict[str, dict[str, Any]] = {
    "/v1/ingest": {MEDIA_TYPE: _BINARY},
    "/v1/fetch": {"application/json": {"schema": reference(FETCH_BODY)}},
}


def install_openapi(app: FastAPI) -> None:
    """Let `app` describe itself with its real bodies, media types and errors."""

    def describe() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _described(app)
        return app.openapi_schema

    # FastAPI's documented way to extend its description.
    app.openapi = describe  # type: ignore[method-assign]


def _described(app: FastAPI) -> dict[str, Any]:
    schema = get_openapi(
        title=app.title, version=app.version, description=_DESCRIPTION, routes=app.routes
    )
    schema.setdefault("components", {})["securitySchemes"] = {"key": _KEY}
    schemas = schema["components"].setdefault("schemas", {})
    # FastAPI's own errors never leave: what it would refuse with 422 is our `bad_request`.
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    schemas |= {**components(), "Problem": _PROBLEM}
    problem = {
        "description": "A problem; `code` says which.",
        "content": {
            "application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}
        },
    }
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            responses = operation["responses"]
            responses.pop("422", None)
            responses["200"] = {
                "description": "As asked.",
                "content": _CONTENT.get(
                    path, {"application/json": {"schema": answer_schema(method, path)}}
                ),
            }
            responses["default"] = problem
            # A store without keys asks for none.
            operation["security"] = [] if path in OPEN_PATHS else [{"key": []}, {}]
            if path in _BODIES:
                operation["requestBody"] = {"required": True, "content": _BODIES[path]}
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
