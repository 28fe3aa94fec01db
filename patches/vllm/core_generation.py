"""One generation inside an engine core, with no front end: what the canary needs there."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

_MOST_STEPS = 256


def generate_in_core(core: Any, request_id: str, prompt: Sequence[int], sampling: Any) -> list[int]:
    """Return the tokens that `EngineCore` samples; call it before its loop begins.

    Data-parallel ranks that all do so stay in step: each makes the same steps.

    Raises:
        RuntimeError: the request did not end.
    """
    request, _ = core.preprocess_add_request(_core_request(request_id, prompt, sampling))
    core.scheduler.add_request(request)
    tokens: list[int] = []
    for _ in range(_MOST_STEPS):
        outputs, model_executed = core.step_fn()
        core.post_step(model_executed)
        for step in (outputs or {}).values():
            for output in step.outputs:
                tokens += output.new_token_ids
        if not core.scheduler.has_requests():
            return tokens
    msg = f"it did not end in {_MOST_STEPS} steps"
    raise RuntimeError(msg)


def _core_request(request_id: str, prompt: Sequence[int], sampling: Any) -> Any:
    import msgspec
    from vllm.v1.engine import EngineCoreRequest

    # What a release wants besides has no default and may be nothing.
    given: dict[str, Any] = {
        field.name: None for field in msgspec.structs.fields(EngineCoreRequest) if field.required
    }
    given |= {
        "request_id": request_id,
        "external_req_id": request_id,
        "prompt_token_ids": list(prompt),
        "sampling_params": sampling,
        "arrival_time": time.time(),
    }
    return EngineCoreRequest(**given)
