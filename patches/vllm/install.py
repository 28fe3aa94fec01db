"""Apply the table to the vLLM of this process."""

from __future__ import annotations

import functools
import logging
import os

from routereplay.patches._engine import PatchSet
from routereplay.patches._patch import Library, Patch, PatchReport
from routereplay.patches.vllm.engine_core import TAP_PATCHES
from routereplay.patches.vllm.engine_tap import taps_engine
from routereplay.patches.vllm.releases import BEFORE, FIRST, installed_release
from routereplay.patches.vllm.settings import Settings
from routereplay.patches.vllm.table import ENGINE_PATCHES, FRONT_END_PATCHES, requirements

logger = logging.getLogger(__name__)

_ADVICE = (
    "Set ROUTEREPLAY_ENABLED=0 to run vLLM without recording, install a supported vLLM, or "
    "a routereplay that knows this one. ROUTEREPLAY_ALLOW_UNTESTED=1 accepts another "
    "release if everything else fits."
)


def patch_set(*, engine_only: bool = False) -> PatchSet:
    """Return the patches for the vLLM of this process."""
    tap = TAP_PATCHES if taps_engine(os.environ) else ()
    return _patch_set(ENGINE_PATCHES if engine_only else FRONT_END_PATCHES, tap)


@functools.cache
def _patch_set(patches: tuple[Patch, ...], tap: tuple[Patch, ...]) -> PatchSet:
    """Return the one set of these patches: what is applied is a process's state."""
    import vllm

    settings = Settings.from_env(os.environ)
    return PatchSet(
        Library("vllm", vllm.__version__, FIRST, BEFORE),
        patches + tap,
        requirements(installed_release()) if patches is FRONT_END_PATCHES else (),
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
    patches = patch_set(engine_only=engine_only)
    if patches.report is not None:
        return patches.report
    report = patches.apply()
    logger.info(
        "routereplay: %d patches applied to vllm %s",
        *(len(report.patches), report.version),
    )
    return report


def _join_logging() -> None:
    """Let our lines come out where vLLM's do: it gives handlers to its own logger only.

    Some releases configure it after their plugins are loaded.
    """
    ours = logging.getLogger("routereplay")
    if not (ours.handlers or logging.getLogger().handlers):
        ours.parent = logging.getLogger("vllm")
