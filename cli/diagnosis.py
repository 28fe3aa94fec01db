"""What `routereplay doctor` looks at, and in which order."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from routereplay.cli.doctor_running import check_disk, check_server, check_store
from routereplay.cli.doctor_vllm import check_flags, check_vllm
from routereplay.cli.findings import Finding, failed, ok
from routereplay.wire.version import WIRE_VERSION

_PACKAGES = (
    *("routereplay", "vllm", "megatron-core", "torch", "numpy", "msgspec", "redis", "fastapi"),
)


def diagnose(store_url: str, server_url: str | None = None, flags: str = "") -> list[Finding]:
    """Look at everything that can be seen from here.

    Args:
        store_url: of the route store.
        server_url: of a running vLLM server, if there is one.
        flags: of a `vllm serve` that somebody is about to start.
    """
    return list(_findings(store_url, server_url, flags))


def as_data(findings: list[Finding]) -> dict[str, Any]:
    """Return findings as JSON-able data; `ok` is whether nothing failed."""
    return {
        "ok": all(found.state != "failed" for found in findings),
        "packages": {name: _version(name) for name in _PACKAGES},
        "wire_version": WIRE_VERSION,
        "findings": [found.to_dict() for found in findings],
    }


def _findings(store_url: str, server_url: str | None, flags: str) -> Iterator[Finding]:
    installed = [f"{name} {found}" for name in _PACKAGES if (found := _version(name))]
    yield ok("packages", f"python {platform.python_version()}, {', '.join(installed)}")
    environ = dict(os.environ)
    if environ.get("ROUTEREPLAY_CONFIG"):
        yield from _config_file(environ)
    yield from check_vllm(environ)
    if flags:
        yield from check_flags(flags)
    yield from check_store(store_url)
    yield from check_disk(environ)
    if server_url:
        yield from check_server(server_url)


def _config_file(environ: dict[str, str]) -> Iterator[Finding]:
    """Fill `environ` as the recorder does when vLLM starts."""
    from routereplay.patches.vllm.config_file import fill

    try:
        fill(environ)
    except ValueError as error:
        yield failed("ROUTEREPLAY_CONFIG", str(error), "docs/operating.md shows such a file")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
