"""What `routereplay doctor` finds: versions, whether each patch fits, the store."""

from __future__ import annotations

import importlib
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import httpx

from routereplay.wire.version import WIRE_VERSION

_PACKAGES = (
    "routereplay",
    "vllm",
    "megatron-core",
    "torch",
    "numpy",
    "msgspec",
    "redis",
    "fastapi",
)


def diagnose(store_url: str) -> dict[str, Any]:
    """Return everything found; `ok` is false if anything would stop a user."""
    findings: dict[str, Any] = {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "wire_version": WIRE_VERSION,
        "vllm": _vllm(),
        "store": _store(store_url),
    }
    findings["ok"] = all(findings[part]["ok"] for part in ("vllm", "store"))
    return findings


def render(findings: dict[str, Any]) -> str:
    """Return the findings as text."""
    lines = [f"python {findings['python']}, wire version {findings['wire_version']}"]
    lines += [f"  {name:<14} {found or '-'}" for name, found in findings["packages"].items()]
    for part in ("vllm", "store"):
        found = findings[part]
        lines.append(f"{part}: {'ok' if found['ok'] else 'NOT OK'}: {found['text']}")
        lines += [f"  {row}" for row in found.get("rows", ())]
    return "\n".join(lines)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _vllm() -> dict[str, Any]:
    if _version("vllm") is None:
        return {"ok": True, "text": "not installed here; nothing to patch"}
    from routereplay.patches._engine import PatchSet
    from routereplay.patches._patch import Library
    from routereplay.patches.errors import PatchError
    from routereplay.patches.vllm.releases import BEFORE, FIRST, Release
    from routereplay.patches.vllm.table import PATCHES, requirements

    vllm = _import_quietly("vllm")
    library = Library("vllm", vllm.__version__, FIRST, BEFORE)
    needed = requirements(Release.of(vllm.__version__))
    try:
        PatchSet(library, PATCHES, needed, advice="").check()
    except PatchError as error:
        return {"ok": False, "text": error.message}
    return {
        "ok": True,
        "text": f"all {len(PATCHES)} patches fit vllm {vllm.__version__}",
        "rows": [f"{patch.name:<22} {patch.target}" for patch in PATCHES],
    }


def _import_quietly(name: str) -> Any:
    """Import a package that logs to standard output, where --json must be alone."""
    level = os.environ.get("VLLM_LOGGING_LEVEL")
    os.environ["VLLM_LOGGING_LEVEL"] = level or "ERROR"
    try:
        return importlib.import_module(name)
    finally:
        # Our own child processes log as before.
        if level is None:
            del os.environ["VLLM_LOGGING_LEVEL"]


def _store(url: str) -> dict[str, Any]:
    try:
        answer = httpx.get(f"{url.rstrip('/')}/readyz", trust_env=False, timeout=5.0)
    except httpx.HTTPError as error:
        return {"ok": False, "text": f"{url} cannot be reached ({error})"}
    ready = answer.status_code == 200
    return {"ok": ready, "text": f"{url} is {'ready' if ready else answer.text}"}
