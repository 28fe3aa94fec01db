"""Errors of replay: training stops rather than train on other experts.

ReplayError                replay
├─ ReplayUnsupported       replay_unsupported: this model cannot be replayed, with every reason
├─ ReplayStateError        replay_state: a call at a moment when it means nothing
├─ ReplayMismatch          replay_mismatch: the routes do not fit the model or the microbatch
├─ ReplayIncomplete        replay_incomplete: a step ended and not every route was executed
└─ ReplayMisrouted         replay_misrouted: rows execute experts that were recorded for others
"""

from __future__ import annotations

from collections.abc import Sequence

from routereplay.wire.errors import RouteReplayError


class ReplayError(RouteReplayError):
    """Replay went wrong."""

    code = "replay"


class ReplayUnsupported(ReplayError):
    """The model, as it is configured, cannot be replayed; `reasons` lists everything."""

    code = "replay_unsupported"

    def __init__(self, reasons: Sequence[str]) -> None:
        lines = "".join(f"\n  - {reason}" for reason in reasons)
        super().__init__(f"this model cannot replay routed experts:{lines}", reasons=list(reasons))
        self.reasons = tuple(reasons)


class ReplayStateError(ReplayError):
    """A router or the trainer called at a moment when the call means nothing."""

    code = "replay_state"


class ReplayMismatch(ReplayError):
    """The routes do not fit the model, or the model's input is not the microbatch's."""

    code = "replay_mismatch"


class ReplayIncomplete(ReplayError):
    """A step ended, and not every router executed every microbatch as often as it must."""

    code = "replay_incomplete"


class ReplayMisrouted(ReplayError):
    """Every count is right, and yet the rows replay experts that are not theirs."""

    code = "replay_misrouted"
