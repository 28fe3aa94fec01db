"""The doctor's look at the vLLM that is installed here, its environment and its flags."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from routereplay.cli.findings import Finding, failed, ok, warning
from routereplay.cli.serve_flags import UnreadableConfig, read_flags

_OFF = frozenset({"0", "false", "no", "off"})


def check_vllm(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Yield what stands between the installed vLLM and its routes."""
    try:
        installed = importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        yield ok("vllm", "not installed here; nothing to patch")
        return
    from routereplay.patches.vllm.releases import BEFORE, FIRST, Release

    release = Release.of(installed)
    supported = ">={}.{},<{}.{}".format(*FIRST, *BEFORE)
    if FIRST <= release.numbers < BEFORE:
        yield ok("vllm.release", f"vllm {installed}; supported are {supported}")
    else:
        yield failed(
            "vllm.release",
            f"vllm {installed}; supported are {supported}",
            "install a supported vLLM, or set ROUTEREPLAY_ALLOW_UNTESTED=1 if every patch fits",
        )
    yield from _patches(installed)
    yield from _environment(environ, release)


def check_flags(flags: str) -> Iterator[Finding]:
    """Yield what of a command line of `vllm serve`, and of the file that it names with
    `--config`, would be refused, or records nothing."""
    from routereplay.patches.vllm.refusals import refusals_of
    from routereplay.patches.vllm.releases import BEFORE, Release

    try:
        release = Release.of(importlib.metadata.version("vllm"))
    except importlib.metadata.PackageNotFoundError:
        release = Release(BEFORE)
    try:
        args = read_flags(flags)
    except UnreadableConfig as error:
        yield failed("flags", str(error), error.way_out)
        return
    except (argparse.ArgumentError, ValueError) as error:
        yield failed(
            "flags", f"cannot be read: {error}", "mend it; all of them are one argument, in quotes"
        )
        return
    if args.config is not None:
        yield warning(
            "flags",
            f"vLLM passes over --config={args.config}: it reads a file from two words only",
            f"write --config {args.config}, and look again",
        )
    found = [
        failed("flags", f"{refusal.name}: {refusal.reason}", refusal.way_out)
        for refusal in refusals_of(args, release)
    ]
    yield from found or [ok("flags", "none of them would break capture")]


def _patches(installed: str) -> Iterator[Finding]:
    from routereplay.cli.surface import load_snapshot, surface_of, unseen_bodies
    from routereplay.patches._probe import check_requirement, probe
    from routereplay.patches._surface import source_below
    from routereplay.patches.errors import PatchError
    from routereplay.patches.vllm.releases import Release
    from routereplay.patches.vllm.table import PATCHES, requirements

    module = _import_quietly("vllm")
    folder = Path(module.__file__).parents[1]
    unseen = unseen_bodies(surface_of(source_below(folder), installed), load_snapshot())
    for patch in PATCHES:
        try:
            probe(patch)
        except PatchError as error:
            yield failed(patch.name, error.message, "install a supported vLLM")
            continue
        if patch.name in unseen:
            yield warning(
                patch.name,
                f"fits {patch.target}, whose body is that of no released vLLM",
                "somebody changed this vLLM; the canary decides whether routes are real",
            )
        else:
            yield ok(patch.name, f"fits {patch.target}")
    missing = []
    for needed in requirements(Release.of(installed)):
        try:
            check_requirement(needed)
        except PatchError as error:
            missing.append(error.message)
    if missing:
        yield failed("vllm.names", "; ".join(missing), "install a supported vLLM")
    else:
        yield ok("vllm.names", "every name that the patches read is there")


def _environment(environ: Mapping[str, str], release: Any) -> Iterator[Finding]:
    from routereplay.patches.vllm.engine_tap import taps_engine
    from routereplay.patches.vllm.releases import AUX_OUTPUT
    from routereplay.patches.vllm.settings import Settings

    points = importlib.metadata.entry_points(group="vllm.general_plugins", name="routereplay")
    if not points:
        yield failed(
            "plugin", "vLLM will not find the recorder", "install routereplay in this environment"
        )
    allowed = environ.get("VLLM_PLUGINS")
    if allowed is not None and "routereplay" not in allowed.split(","):
        yield failed(
            "VLLM_PLUGINS",
            f"is {allowed!r}: vLLM loads only what it lists",
            "add routereplay to the list, or unset it",
        )
    if taps_engine(environ):
        yield _engine_tap(environ)
    if environ.get("VLLM_USE_V2_MODEL_RUNNER") == "0" and release.has(AUX_OUTPUT):
        yield failed("VLLM_USE_V2_MODEL_RUNNER", "the V1 runner captures nothing", "unset it")
    if environ.get("ROUTEREPLAY_ENABLED", "1").strip().lower() in _OFF:
        yield warning("ROUTEREPLAY_ENABLED", "the recorder is off", "unset it to record")
    if not environ.get("ROUTEREPLAY_STORE_URL"):
        yield warning(
            "ROUTEREPLAY_STORE_URL",
            "is not set in this environment: a vLLM that starts here records nothing",
            "set it to the store's address",
        )
        return
    try:
        Settings.from_env(environ)
    except ValueError as error:
        yield failed("settings", str(error), "docs/operating.md lists every variable")


def _engine_tap(environ: Mapping[str, str]) -> Finding:
    name = "VLLM_USE_RUST_FRONTEND" if environ.get("VLLM_USE_RUST_FRONTEND") else "ROUTEREPLAY_TAP"
    if environ.get("ROUTEREPLAY_METRICS_PORT"):
        return ok(name, "engines record; the recorder's metrics are on ROUTEREPLAY_METRICS_PORT")
    return warning(
        name,
        "engines record, and the front end's /metrics does not show what they do",
        "set ROUTEREPLAY_METRICS_PORT",
    )


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
