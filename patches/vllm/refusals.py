"""Engines whose routes would be missing or wrong, refused before they load a model.

vLLM refuses some of them itself, in terms of a flag that nobody has given: the recorder
switches capture on. Here each has its reason and a way out, as data.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from routereplay.patches._probe import MARK
from routereplay.patches.errors import PatchError
from routereplay.patches.vllm.releases import (
    AUX_OUTPUT,
    DBO_OFFSET,
    DRAFT_LAYERS_APART,
    EXTERNAL_HITS_CAPPED,
    Release,
)

_P_AND_D = frozenset(
    {
        *("NixlConnector", "NixlPullConnector", "NixlPushConnector"),
        *("MoRIIOConnector", "MooncakeConnector", "P2pNcclConnector"),
    }
)
"""Connectors of prefill/decode disaggregation; the others move blocks of one engine."""

_DRAFTS_OF_OWN = frozenset({"ngram", "ngram_gpu", "suffix"})
"""Speculation without a draft model."""

_ENABLED_0 = "or set ROUTEREPLAY_ENABLED=0 to run it without recording"


class UnsupportedEngine(PatchError):
    """An engine that cannot be recorded: some or all of its routes would be wrong or missing."""

    code = "unsupported_engine"


@dataclass(frozen=True, slots=True)
class Refusal:
    """One kind of engine that is refused."""

    name: str
    applies: Callable[[Any, Release], bool]
    """Takes `EngineArgs` and the release."""
    reason: str
    way_out: str


REFUSALS: tuple[Refusal, ...] = (
    Refusal(
        "pipeline parallel inference",
        lambda args, release: _number(args, "pipeline_parallel_size") > 1,
        "each stage's workers capture their own layers, and vLLM returns those of one stage",
        "use tensor or expert parallelism in the engine",
    ),
    Refusal(
        "context parallel inference",
        lambda args, release: (
            max(
                _number(args, "decode_context_parallel_size"),
                _number(args, "prefill_context_parallel_size"),
            )
            > 1
        ),
        "each rank captures its own tokens, and vLLM returns those of one rank",
        "use tensor or expert parallelism in the engine",
    ),
    Refusal(
        "prefill/decode disaggregation",
        lambda args, release: not _P_AND_D.isdisjoint(_connectors(args)),
        "the prompt is computed by another engine, and its routes stay there",
        "sample with engines that do both",
    ),
    Refusal(
        "a KV connector before vLLM 0.33",
        lambda args, release: bool(_connectors(args)) and not release.has(EXTERNAL_HITS_CAPPED),
        "these releases find a token's row by its slot in the local cache (up to 0.30), or end "
        "the engine at a hit in another cache whose rows are gone (0.31, 0.32)",
        "run without --kv-transfer-config, or on vLLM 0.33 or later",
    ),
    Refusal(
        "prefix caching switched off since vLLM 0.31",
        lambda args, release: args.enable_prefix_caching is False and release.has(AUX_OUTPUT),
        "these releases keep a prompt's rows with the blocks of the prefix cache",
        "start it without --no-enable-prefix-caching",
    ),
    Refusal(
        "Model Runner V1 since vLLM 0.31",
        lambda args, release: (
            os.environ.get("VLLM_USE_V2_MODEL_RUNNER") == "0" and release.has(AUX_OUTPUT)
        ),
        "only Model Runner V2 captures routes",
        "unset VLLM_USE_V2_MODEL_RUNNER",
    ),
    Refusal(
        "a draft model before vLLM 0.26",
        lambda args, release: _has_draft_model(args) and not release.has(DRAFT_LAYERS_APART),
        "the layers of an MTP or EAGLE draft overwrite the target's first layers",
        "speculate with ngram, or use vLLM 0.26 or later",
    ),
    Refusal(
        "dual batch overlap before vLLM 0.33",
        lambda args, release: (
            bool(getattr(args, "enable_dbo", False)) and not release.has(DBO_OFFSET)
        ),
        "both halves of a batch are captured into the same rows",
        "start it without --enable-dbo, or use vLLM 0.33 or later",
    ),
)


def check_engine(args: Any, release: Release) -> None:
    """Look at `EngineArgs` before an engine is built.

    Raises:
        UnsupportedEngine: it cannot be recorded; the message has every reason and way out.
    """
    found = list(refusals_of(args, release))
    if found:
        lines = "\n".join(f"  - {n.name}: {n.reason}. Way out: {n.way_out}." for n in found)
        msg = f"the routes of this engine cannot be recorded, {_ENABLED_0}:\n{lines}"
        raise UnsupportedEngine(msg, refused=[refusal.name for refusal in found])


def refusals_of(args: Any, release: Release) -> Iterator[Refusal]:
    """Yield what of `EngineArgs` is refused on a release."""
    return (refusal for refusal in REFUSALS if refusal.applies(args, release))


def check_output_processor(processor: Any) -> None:
    """Look at the output processor of an engine that was built.

    Raises:
        UnsupportedEngine: somebody else's stands in its place, past which rows would go.
    """
    if "process_outputs" in vars(processor):
        raise _replaced(type(processor))
    check_output_processor_class(type(processor))


def check_output_processor_class(kind: type) -> None:
    """Look at the class whose instance an engine is going to have, before a model is loaded.

    Raises:
        UnsupportedEngine: its `process_outputs` is not the one that was patched.
    """
    if getattr(getattr(kind, "process_outputs", None), MARK, None) is None:
        raise _replaced(kind)


def _replaced(kind: type) -> UnsupportedEngine:
    msg = (
        f"the engine's output processor is {kind.__module__}.{kind.__qualname__}, whose "
        "process_outputs is not the one that was patched: rows would go past the recorder. "
        f"Remove what replaces it, {_ENABLED_0}."
    )
    return UnsupportedEngine(msg, found=f"{kind.__module__}:{kind.__qualname__}")


def check_scheduler(scheduler: Any, *, captures: bool) -> None:
    """Look at the scheduler of an engine that records by itself, and got no recorder.

    Raises:
        UnsupportedEngine: it captures routes, and they would go past the recorder.
    """
    if captures:
        kind = type(scheduler)
        msg = (
            f"the engine's scheduler is {kind.__module__}.{kind.__qualname__}, which is not "
            "vLLM's, and the routes of a front end that is not Python are taken there. Remove "
            f"--scheduler-cls, serve with the Python front end, {_ENABLED_0}."
        )
        raise UnsupportedEngine(msg, found=f"{kind.__module__}:{kind.__qualname__}")


def _number(args: Any, name: str) -> int:
    return int(getattr(args, name, 1) or 1)


def _connectors(args: Any) -> set[str]:
    """Return the names of all KV connectors, also of those that a `MultiConnector` joins."""
    config = args.kv_transfer_config
    if not config:
        return set()
    name, extra = _field(config, "kv_connector"), _field(config, "kv_connector_extra_config")
    joined = (extra or {}).get("connectors") or ()
    return {str(found) for found in (name, *(_field(each, "kv_connector") for each in joined))}


def _field(config: Any, name: str) -> Any:
    return config.get(name) if isinstance(config, dict) else getattr(config, name, None)


def _has_draft_model(args: Any) -> bool:
    config = args.speculative_config or {}
    # Later releases have flags for its parts: --spec-method, --spec-model.
    method = _field(config, "method") or getattr(args, "spec_method", None)
    model = _field(config, "model") or getattr(args, "spec_model", None)
    return bool(method or model) and str(method) not in _DRAFTS_OF_OWN
