"""`Scheduler`: the engine's side of the rows, which costs it as little as it can.

vLLM spends a part of every step on routes that depends on how many requests run and not on
how many rows are new. Both patches leave to it what it does, and do less of it. They run in
the engine's loop: whatever goes wrong here, the step goes on as vLLM would have it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from routereplay.patches._patch import Function, Patch
from routereplay.patches.vllm.decoded import Decoded, take_decoded
from routereplay.patches.vllm.engine_args import capture_section
from routereplay.patches.vllm.engine_tap import TAP
from routereplay.patches.vllm.gathered import asks, gather
from routereplay.patches.vllm.guard import Guard

logger = logging.getLogger(__name__)

_CLASS = "vllm.v1.core.sched.scheduler:Scheduler"
_CLIENTS = "_routereplay_clients"
"""Attribute of a `Scheduler`: the numbers of the front ends that take gathered rows."""

_UNRECORDED = "_routereplay_unrecorded"
"""Attribute of a `Scheduler`: somebody sent it a request that nobody records."""

_guard = Guard(logger, on_error=lambda: None, on_trip=lambda: None)


def _note_client(original: Function) -> Function:
    def add_request(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        if _guard.run(asks, request):
            self.__dict__.setdefault(_CLIENTS, set()).add(request.client_index)
        elif tap := self.__dict__.get(TAP):
            tap.request_added(request)
        elif _UNRECORDED not in self.__dict__:
            _guard.run(_note_unrecorded, self)
        return original(self, request, *args, **kwargs)

    return add_request


def _note_unrecorded(scheduler: Any) -> None:
    scheduler.__dict__[_UNRECORDED] = True
    if capture_section(scheduler.vllm_config).enable_return_routed_experts:
        logger.warning(
            "route recorder: a front end that does not record sends requests to this engine, and "
            "their routes go nowhere. If it is vLLM's Rust front end (vllm-rs), set "
            "ROUTEREPLAY_TAP=engine for the engine"
        )


def _gather_rows(original: Function) -> Function:
    def update_from_output(
        self: Any, scheduler_output: Any, model_runner_output: Any, *args: Any, **kwargs: Any
    ) -> Any:
        clients, tap = self.__dict__.get(_CLIENTS, ()), self.__dict__.get(TAP)
        decoded = None
        if clients or tap:
            decoded = _guard.run(take_decoded, self, scheduler_output, model_runner_output)
        updated = original(self, scheduler_output, model_runner_output, *args, **kwargs)
        if clients or tap:
            for client, step in updated.items():
                taken = tap is not None
                _guard.run(_give, step.outputs, decoded, gathered=client in clients, taken=taken)
                if tap:
                    tap.step(step.outputs)
        return updated

    return update_from_output


def _give(outputs: Sequence[Any], decoded: Decoded | None, *, gathered: bool, taken: bool) -> None:
    if decoded is not None:
        decoded.give(outputs, gathered=gathered, taken=taken)
    elif gathered:
        gather(outputs)


def _note_few_blocks(original: Function) -> Function:
    def _update_after_schedule(self: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        blocks_of = self.__dict__.get("_re_block_ids")
        if blocks_of is None:  # Releases that find rows in another way.
            return original(self, scheduler_output, *args, **kwargs)
        self.enable_return_routed_experts = False
        try:
            result = original(self, scheduler_output, *args, **kwargs)
        finally:
            self.enable_return_routed_experts = True
        scheduled = scheduler_output.num_scheduled_tokens
        unread = _guard.run(_unread, self.requests, scheduled)
        group = self.routed_experts_mgr.attn_gid
        for request_id in scheduled if unread is None else unread:
            blocks = self.kv_cache_manager.get_blocks(request_id)
            blocks_of[request_id] = blocks.get_block_ids()[group]
        return result

    return _update_after_schedule


def _unread(requests: Mapping[str, Any], scheduled: Iterable[str]) -> list[str]:
    """Return the requests whose prompt's rows are still to be read from their blocks."""
    return [request_id for request_id in scheduled if not requests[request_id].num_output_tokens]


NOTE_CLIENT = Patch(
    name="vllm.note-client",
    target=f"{_CLASS}.add_request",
    uses=("self", "request"),
    wrapper=_note_client,
    reason="A front end says with its requests that it takes the rows of a step as one array.",
    remove_when="vLLM sends the rows of a step as one array (not in 0.33).",
)

GATHER_ROWS = Patch(
    name="vllm.gather-rows",
    target=f"{_CLASS}.update_from_output",
    uses=("self", "scheduler_output", "model_runner_output"),
    wrapper=_gather_rows,
    reason=(
        "An array for each request and step is a frame to encode, send, receive and decode for "
        "each, on both sides under the interpreter's lock; one for a step costs next to nothing."
    ),
    remove_when="vLLM sends the rows of a step as one array (not in 0.33).",
)

NOTE_FEW_BLOCKS = Patch(
    name="vllm.note-few-blocks",
    target=f"{_CLASS}._update_after_schedule",
    uses=("self", "scheduler_output"),
    wrapper=_note_few_blocks,
    reason=(
        "Up to 0.30 vLLM lists all KV blocks of all running requests in every step, to find the "
        "rows of prompts; only a request that has no token yet needs its list."
    ),
    remove_when="0.30 is no longer supported.",
)
