"""Every change to vLLM, and every name that the wrappers read from it."""

from __future__ import annotations

from routereplay.patches._patch import Patch, Requirement
from routereplay.patches.vllm.engine_args import CAPTURE_ROUTES
from routereplay.patches.vllm.engine_init import ATTACH_ASYNC, ATTACH_OFFLINE, NOTE_SHUTDOWN
from routereplay.patches.vllm.output_processor import (
    NOTE_ABORT,
    NOTE_FAILURE,
    NOTE_REQUEST,
    TAP_ROWS,
)

FIRST_RELEASE = (0, 30)
BEFORE_RELEASE = (0, 31)

PATCHES: tuple[Patch, ...] = (
    CAPTURE_ROUTES,
    ATTACH_ASYNC,
    ATTACH_OFFLINE,
    NOTE_REQUEST,
    TAP_ROWS,
    NOTE_ABORT,
    NOTE_FAILURE,
    NOTE_SHUTDOWN,
)

REQUIREMENTS: tuple[Requirement, ...] = (
    Requirement(
        target="vllm.v1.engine:EngineCoreOutput",
        names=("request_id", "new_token_ids", "finish_reason", "routed_experts"),
        reason="rows of a step",
    ),
    Requirement(
        target="vllm.v1.engine:EngineCoreRequest",
        names=(
            *("request_id", "external_req_id", "prompt_token_ids", "prompt_embeds"),
            *("sampling_params", "lora_request", "arrival_time", "resumable"),
        ),
        reason="ids and tokens of a request",
    ),
    Requirement(
        target="vllm.sampling_params:SamplingParams",
        names=("n", "extra_args", "routed_experts_prompt_start"),
        reason="what the request asked for",
    ),
    Requirement(
        target="vllm.v1.engine.output_processor:RequestState.__init__",
        names=("parent_req", "request_index", "detokenizer"),
        reason="which choice a request is",
    ),
    Requirement(
        target="vllm.v1.engine.detokenizer:IncrementalDetokenizer",
        names=("output_token_ids", "num_output_tokens"),
        reason="tokens after stop strings",
    ),
    Requirement(
        target="vllm.config:ModelConfig",
        names=(
            *("is_moe", "model", "served_model_name", "get_total_num_hidden_layers"),
            *("get_num_experts", "get_num_experts_per_tok"),
        ),
        reason="sizes of the routes",
    ),
)
