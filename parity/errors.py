"""Errors of the parity tools."""

from __future__ import annotations

from routereplay.wire.errors import RouteReplayError


class ConversionError(RouteReplayError):
    """A checkpoint that cannot be converted whole."""

    code = "conversion"


class EngineFailed(RouteReplayError):
    """The engine that was to sample or score answered with something else."""

    code = "engine_failed"
