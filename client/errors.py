"""Errors of alignment: the routes do not fit the tokens that are being trained.

CoverageError
├─ MissingRoutes       missing_routes: a row, a turn or a whole trajectory has no routes
├─ MisalignedRoutes    misaligned_routes: the recorded tokens are not the trainer's
└─ PoisonedRoutes      poisoned_routes: the recorder saw that a turn's rows are not real
BundleNotFound         bundle_not_found: there is no replay bundle at a path
"""

from __future__ import annotations

from routereplay.wire.errors import RouteReplayError


class CoverageError(RouteReplayError):
    """The routes do not fit the tokens."""

    code = "coverage"


class MissingRoutes(CoverageError):
    """A token that will be trained has no recorded row."""

    code = "missing_routes"


class MisalignedRoutes(CoverageError):
    """A recorded token differs from the trainer's at the same position."""

    code = "misaligned_routes"


class PoisonedRoutes(CoverageError):
    """The recorder sealed a turn as invalid: what vLLM returned cannot be real routes."""

    code = "poisoned_routes"


class BundleNotFound(RouteReplayError):
    """There is no replay bundle at a path."""

    code = "bundle_not_found"
