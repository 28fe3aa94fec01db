"""Errors that stop the sidecar from starting; none of them crosses the wire."""

from __future__ import annotations

from routereplay.wire.errors import RouteReplayError


class EngineStartError(RouteReplayError):
    """The embedded engine did not start."""

    code = "engine_start_failed"


class EngineMisconfigured(RouteReplayError):
    """The engine would not keep what the store promises."""

    code = "engine_misconfigured"
