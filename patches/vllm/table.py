"""Every change to vLLM, and every name that the wrappers read from it."""

from __future__ import annotations

from routereplay.patches._patch import Patch, Requirement
from routereplay.patches.vllm.engine_args import CAPTURE_ROUTES
from routereplay.patches.vllm.engine_core import TAP_PATCHES
from routereplay.patches.vllm.engine_init import (
    ATTACH_ASYNC,
    ATTACH_OFFLINE,
    NOTE_SHUTDOWN,
    PROVE_FIRST,
)
from routereplay.patches.vllm.new_weights import NOTE_COMMAND, NOTE_RESUME, NOTE_WAKE_UP
from routereplay.patches.vllm.output_processor import (
    NOTE_ABORT,
    NOTE_FAILURE,
    NOTE_REQUEST,
    TAP_ROWS,
)
from routereplay.patches.vllm.releases import (
    AUX_OUTPUT,
    SESSION_ID,
    TOPK_OF_CONFIG,
    WEIGHT_VERSIONS,
    Release,
    Since,
)
from routereplay.patches.vllm.scheduler import GATHER_ROWS, NOTE_CLIENT, NOTE_FEW_BLOCKS

ENGINE_PATCHES: tuple[Patch, ...] = (NOTE_CLIENT, GATHER_ROWS, NOTE_FEW_BLOCKS)
"""What a process needs that runs an engine core and no front end."""

FRONT_END_PATCHES: tuple[Patch, ...] = (
    CAPTURE_ROUTES,
    ATTACH_ASYNC,
    ATTACH_OFFLINE,
    PROVE_FIRST,
    NOTE_REQUEST,
    TAP_ROWS,
    NOTE_ABORT,
    NOTE_FAILURE,
    NOTE_SHUTDOWN,
    NOTE_COMMAND,
    NOTE_WAKE_UP,
    NOTE_RESUME,
    *ENGINE_PATCHES,
)
"""What a process needs that takes requests, and may run an engine core as well."""

PATCHES: tuple[Patch, ...] = (*FRONT_END_PATCHES, *TAP_PATCHES)
"""All of them; the last ones are applied only where a front end is not Python."""

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
        target="vllm.v1.request:Request.__init__",
        names=("sampling_params", "client_index"),
        reason="which front end takes the rows of a step as one array",
    ),
    Requirement(
        target="vllm.v1.request:Request",
        names=("num_output_tokens",),
        reason="whose prompt's rows are still to be read",
    ),
    Requirement(
        target="vllm.v1.engine.core:EngineCore",
        names=("post_step",),
        reason="the canary of an engine whose front end is not Python",
    ),
    Requirement(
        target="vllm.v1.engine:EngineCoreOutputs",
        names=("outputs",),
        reason="rows of a step",
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
        target="vllm.config.model:ModelConfig",
        names=(
            *("is_moe", "model", "served_model_name", "hf_text_config"),
            *("get_total_num_hidden_layers", "get_num_experts", "get_vocab_size"),
            "max_model_len",
        ),
        reason="sizes of the routes",
    ),
    Requirement(
        target="vllm.engine.arg_utils:EngineArgs",
        names=(
            *("pipeline_parallel_size", "kv_transfer_config", "speculative_config"),
            "enable_prefix_caching",
        ),
        reason="engines that cannot be recorded",
    ),
)

LATER_REQUIREMENTS: tuple[tuple[Since, Requirement], ...] = (
    (
        TOPK_OF_CONFIG,
        Requirement(
            target="vllm.config.model:ModelConfig",
            names=("get_num_experts_per_tok",),
            reason="sizes of the routes",
        ),
    ),
    (
        SESSION_ID,
        Requirement(
            target="vllm.v1.engine:EngineCoreRequest",
            names=("session_id",),
            reason="the conversation a request belongs to",
        ),
    ),
    (
        AUX_OUTPUT,
        Requirement(
            target="vllm.engine.arg_utils:EngineArgs",
            names=("aux_output_config",),
            reason="the switch of capture",
        ),
    ),
    (
        AUX_OUTPUT,
        Requirement(
            target="vllm.config.aux_output:AuxOutputConfig",
            names=("enable_return_routed_experts",),
            reason="the switch of capture",
        ),
    ),
    (
        WEIGHT_VERSIONS,
        Requirement(
            target="vllm.v1.engine.core:EngineCore",
            names=("get_weight_version",),
            reason="which weights made a token, if the front end is not Python",
        ),
    ),
    (
        WEIGHT_VERSIONS,
        Requirement(
            target="vllm.v1.engine.output_processor:RequestState",
            names=("track_weight_version",),
            reason="which weights made a token",
        ),
    ),
)
"""Names that only later releases have, with the first that must."""


def requirements(release: Release) -> tuple[Requirement, ...]:
    """Return what the wrappers read from this release."""
    later = tuple(needed for since, needed in LATER_REQUIREMENTS if release.has(since))
    return REQUIREMENTS + later
