"""Apply the table to the vLLM of this process."""

from __future__ import annotations

import functools
import logging
import os

from routereplay.patches._engine import PatchSet
from routereplay.patches._patch import Library, Patch, PatchReport
from routereplay.patches.errors import PatchError
from routereplay.patches.vllm.releases import BEFORE, FIRST, installed_release
from routereplay.patches.vllm.settings import Settings
from routereplay.patches.vllm.table import ENGINE_PATCHES, PATCHES, requirements

logger = logging.getLogger(__name__)

_ADVICE = (
    "Set ROUTEREPLAY_ENABLED=0 to run vLLM without recording, install a supported vLLM, or "
    "a routereplay that knows this one. ROUTEREPLAY_ALLOW_UNTESTED=1 accepts another "
    "release if everything else fits."
)


class RustFrontend(PatchError):
    """vLLM's Rust front end takes the requests; nothing of it can be recorded."""

    code = "rust_frontend"


def patch_set() -> PatchSet:
    """Return the patches for the vLLM of this process."""
    return _patch_set(PATCHES)


@functools.cache
def _patch_set(patches: tuple[Patch, ...]) -> PatchSet:
    """Return the one set of these patches: what is applied is a process's state."""
    import vllm

    settings = Settings.from_env(os.environ)
    return PatchSet(
        Library("vllm", vllm.__version__, FIRST, BEFORE),
        patches,
        requirements(installed_release()) if patches is PATCHES else (),
        advice=_ADVICE,
        allow_untested=settings.allow_untested,
    )


def install(*, engine_only: bool = False) -> PatchReport:
    """Patch vLLM once.

    Args:
        engine_only: this process runs an engine core and no front end; what the front end
            needs was checked there, and importing it would only delay the start.

    Raises:
        PatchError: this vLLM is not what the patches expect; nothing was changed.
        ValueError: a `ROUTEREPLAY_` variable means nothing.
    """
    _join_logging()
    _refuse_rust_frontend()
    patches = _patch_set(ENGINE_PATCHES if engine_only else PATCHES)
    if patches.report is not None:
        return patches.report
    report = patches.apply()
    logger.info(
        "routereplay: %d patches applied to vllm %s",
        *(len(report.patches), report.version),
    )
    return report


def _refuse_rust_frontend() -> None:
    if os.environ.get("VLLM_USE_RUST_FRONTEND", "0").strip() not in {"", "0"}:
        msg = (
            "VLLM_USE_RUST_FRONTEND is set: requests would pass by the Python front end, where "
            "routes are recorded, and none would be. Unset it, or set ROUTEREPLAY_ENABLED=0 to "
            "run without recording."
        )
        raise RustFrontend(msg)


def _join_logging() -> None:
    """Let our lines come out where vLLM's do: it gives handlers to its own logger only.

    Some releases configure it after their plugins are loaded.
    """
    ours = logging.getLogger("routereplay")
    if not (ours.handlers or logging.getLogger().handlers):
        ours.parent = logging.getLogger("vllm")
