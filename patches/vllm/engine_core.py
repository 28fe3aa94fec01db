"""`EngineCore` and what starts it: where an engine with a front end beyond Python is recorded.

Applied only where such a front end serves. Requests and rows themselves pass through the
scheduler's wrappers (`scheduler`).
"""

from __future__ import annotations

import logging
from typing import Any

from routereplay.patches._patch import Function, Patch
from routereplay.patches.vllm.attach import attach_engine, model_facts, process_settings
from routereplay.patches.vllm.engine_tap import TAP, keep_core_request
from routereplay.patches.vllm.guard import Guard
from routereplay.patches.vllm.refusals import check_scheduler
from routereplay.patches.vllm.releases import WEIGHT_VERSIONS, installed_release

logger = logging.getLogger(__name__)

_guard = Guard(logger, on_error=lambda: None, on_trip=lambda: None)

_CORE = "vllm.v1.engine.core:EngineCore"
_SCHEDULER = "vllm.v1.core.sched.scheduler:Scheduler"
_EXIT_S = 2.0
"""What an engine may take to end, besides the time for its last rows."""
_REMOVE_WHEN = "vLLM has an official per-step sink for routed experts (none in 0.33)."


def _attach(original: Function) -> Function:
    def __init__(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        original(self, vllm_config, *args, **kwargs)
        facts = model_facts(vllm_config)
        if facts is not None:
            self.__dict__[TAP] = attach_engine(facts, vllm_config)

    return __init__


def _keep_id(original: Function) -> Function:
    def preprocess_add_request(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, request, *args, **kwargs)
        _guard.run(lambda: keep_core_request(result[0], request))
        return result

    return preprocess_add_request


def _note_finish(original: Function) -> Function:
    def finish_requests(self: Any, request_ids: Any, *args: Any, **kwargs: Any) -> Any:
        tap = self.__dict__.get(TAP)
        if tap is not None and not isinstance(request_ids, str | None):
            request_ids = list(request_ids)
        result = original(self, request_ids, *args, **kwargs)
        if tap is not None:
            tap.requests_aborted(request_ids)
        return result

    return finish_requests


def _prove_first(original: Function) -> Function:
    def run_busy_loop(self: Any, *args: Any, **kwargs: Any) -> Any:
        tap = self.scheduler.__dict__.get(TAP)
        if tap is None:
            check_scheduler(self.scheduler, captures=model_facts(self.vllm_config) is not None)
        else:
            if installed_release().has(WEIGHT_VERSIONS):
                tap.weight_version_of = self.get_weight_version
            if tap.canary is not None:
                tap.canary.before_loop(self)
        return original(self, *args, **kwargs)

    return run_busy_loop


def _note_failure(original: Function) -> Function:
    def _send_engine_dead(self: Any, *args: Any, **kwargs: Any) -> Any:
        tap = self.scheduler.__dict__.get(TAP)
        if tap is not None:
            tap.recorder.engine_failed()
        return original(self, *args, **kwargs)

    return _send_engine_dead


def _leave_time(original: Function) -> Function:
    def shutdown(self: Any, timeout: float | None = None, *args: Any, **kwargs: Any) -> Any:
        if timeout is not None:
            timeout = max(timeout, process_settings().flush_timeout_s + _EXIT_S)
        return original(self, timeout, *args, **kwargs)

    return shutdown


TAP_PATCHES: tuple[Patch, ...] = (
    Patch(
        name="vllm.attach-engine",
        target=f"{_SCHEDULER}.__init__",
        uses=("self", "vllm_config"),
        wrapper=_attach,
        reason="Rust front end: the engine gets its recorder where its scheduler is made.",
        remove_when=_REMOVE_WHEN,
    ),
    Patch(
        name="vllm.keep-id",
        target=f"{_CORE}.preprocess_add_request",
        uses=("self", "request"),
        wrapper=_keep_id,
        reason="Rust front end: the client's id comes with a request and stays here.",
        remove_when="vLLM's `Request` keeps the external id (not in 0.33).",
    ),
    Patch(
        name="vllm.note-finish",
        target=f"{_SCHEDULER}.finish_requests",
        uses=("self", "request_ids"),
        wrapper=_note_finish,
        reason="Rust front end: stop strings, disconnects and shutdown end requests here.",
        remove_when=_REMOVE_WHEN,
    ),
    Patch(
        name="vllm.prove-engine",
        target="vllm.v1.engine.core:EngineCoreProc.run_busy_loop",
        uses=("self",),
        wrapper=_prove_first,
        reason="Rust front end: the canary generates before the first request is looked at.",
        remove_when="vLLM proves at start that capture works.",
    ),
    Patch(
        name="vllm.prove-engine-of-many",
        target="vllm.v1.engine.core:DPEngineCoreProc.run_busy_loop",
        uses=("self",),
        wrapper=_prove_first,
        reason="Rust front end, data parallel: as above, on all ranks in step.",
        remove_when="vLLM proves at start that capture works.",
    ),
    Patch(
        name="vllm.note-death",
        target="vllm.v1.engine.core:EngineCoreProc._send_engine_dead",
        uses=("self",),
        wrapper=_note_failure,
        reason="Rust front end: an engine that fails reports its open requests as lost.",
        remove_when=_REMOVE_WHEN,
    ),
    Patch(
        name="vllm.leave-time",
        target="vllm.v1.engine.utils:CoreEngineProcManager.shutdown",
        uses=("self", "timeout"),
        wrapper=_leave_time,
        reason=(
            "Rust front end: vLLM kills its engines the moment it has asked them to end, and with "
            "one the last rows; it waits for them up to `ROUTEREPLAY_FLUSH_TIMEOUT_S`."
        ),
        remove_when="vLLM waits for its engines by default.",
    ),
)
"""What an engine needs besides, whose front end is not Python."""
