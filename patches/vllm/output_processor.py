"""`OutputProcessor`: where requests enter, rows arrive and requests end.

The only seam that is the same from vLLM 0.22 to 0.33 and sees all of it: the client's
id, each step's rows, stop strings, aborts, and every API, streaming or not.
"""

from __future__ import annotations

from typing import Any

from routereplay.patches._patch import Function, Patch
from routereplay.patches.vllm.attach import RECORDER

_CLASS = "vllm.v1.engine.output_processor:OutputProcessor"
_REMOVE_WHEN = "vLLM has an official per-step sink for routed experts (none in 0.33)."


def _note_request(original: Function) -> Function:
    def add_request(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, request, *args, **kwargs)
        recorder = self.__dict__.get(RECORDER)
        if recorder is not None:
            recorder.request_added(request, self.request_states.get(request.request_id))
        return result

    return add_request


def _tap_rows(original: Function) -> Function:
    def process_outputs(self: Any, engine_core_outputs: Any, *args: Any, **kwargs: Any) -> Any:
        recorder = self.__dict__.get(RECORDER)
        if recorder is None:
            return original(self, engine_core_outputs, *args, **kwargs)
        before = len(self.request_states)
        recorder.scatter(engine_core_outputs)
        taken = recorder.take(engine_core_outputs)
        result = original(self, engine_core_outputs, *args, **kwargs)
        recorder.settle(taken, engine_core_outputs, self.request_states, before)
        return result

    return process_outputs


def _note_abort(original: Function) -> Function:
    def abort_requests(self: Any, request_ids: Any, *args: Any, **kwargs: Any) -> Any:
        aborted = original(self, request_ids, *args, **kwargs)
        recorder = self.__dict__.get(RECORDER)
        if recorder is not None:
            recorder.requests_aborted(aborted)
        return aborted

    return abort_requests


def _note_failure(original: Function) -> Function:
    def propagate_error(self: Any, *args: Any, **kwargs: Any) -> Any:
        recorder = self.__dict__.get(RECORDER)
        if recorder is not None:
            recorder.engine_failed()
        return original(self, *args, **kwargs)

    return propagate_error


NOTE_REQUEST = Patch(
    name="vllm.note-request",
    target=f"{_CLASS}.add_request",
    uses=("self", "request"),
    wrapper=_note_request,
    reason="The client's id, the trajectory and the prompt are known here.",
    remove_when=_REMOVE_WHEN,
)

TAP_ROWS = Patch(
    name="vllm.tap-rows",
    target=f"{_CLASS}.process_outputs",
    uses=("self", "engine_core_outputs"),
    wrapper=_tap_rows,
    reason=(
        "Every step's rows arrive here for every API; native responses carry them as "
        "base64 in JSON, built on the event loop, and lose them when streaming."
    ),
    remove_when=_REMOVE_WHEN,
)

NOTE_ABORT = Patch(
    name="vllm.note-abort",
    target=f"{_CLASS}.abort_requests",
    uses=("self", "request_ids"),
    wrapper=_note_abort,
    reason="A client that disconnects ends its request here; natively its rows are lost.",
    remove_when=_REMOVE_WHEN,
)

NOTE_FAILURE = Patch(
    name="vllm.note-failure",
    target=f"{_CLASS}.propagate_error",
    uses=("self",),
    wrapper=_note_failure,
    reason="A dead engine ends every request here; their records are reported as lost.",
    remove_when=_REMOVE_WHEN,
)
