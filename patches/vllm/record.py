"""What the recorder knows of one choice of one request."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any, NamedTuple, cast, get_args

import numpy as np

from routereplay.patches.vllm.identity import ClientId
from routereplay.patches.vllm.prefix import Lineage, ParentId
from routereplay.wire.records import FinishReason, PolicySpan
from routereplay.wire.routes import DtypeName, dtype_for


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Sizes of the model's routes."""

    name: str
    num_layers: int
    topk: int
    num_experts: int
    moe_layers: tuple[int, ...] | None = None
    """Layers that route, as the canary saw them; None if it did not run."""

    @property
    def dtype(self) -> DtypeName:
        """The dtype vLLM captures in."""
        return dtype_for(self.num_experts)

    @property
    def row_nbytes(self) -> int:
        """Bytes of one token's row."""
        return self.num_layers * self.topk * (1 if self.dtype == "uint8" else 2)


@dataclass(frozen=True, slots=True)
class RecordInfo:
    """The part of a record that is known when its request arrives."""

    upload_id: str
    client: ClientId
    trajectory_id: str | None
    model: ModelFacts
    model_name: str
    """The served name, or the adapter's."""
    prompt_token_ids: list[int]
    """vLLM's own list, not a copy; it is not changed while the request lives."""
    row_start: int
    engine_id: str
    ordinal: int
    started_at: float
    parent: ParentId | None = None
    """The record that has the rows before `row_start`, unless the client left them out."""


class Ending(NamedTuple):
    """The part of a record that is known when its request ends."""

    completion_token_ids: list[int]
    finish_reason: FinishReason
    policy_versions: tuple[PolicySpan, ...]
    open_ended: bool = False
    """Somebody behind the recorder may have cut the completion for the client."""


class OpenRecord:
    """A request in progress, as the event loop sees it."""

    __slots__ = (
        *("extra_args", "info", "lineage", "muted", "not_recorded", "owed", "rows"),
        *("shown", "source", "state", "strip"),
    )

    def __init__(
        self,
        info: RecordInfo,
        state: Any,
        *,
        extra_args: dict[str, Any],
        strip: bool,
        lineage: Lineage | None = None,
    ) -> None:
        self.info = info
        self.lineage = lineage
        """Whose rows may follow on these; None: nobody's."""
        self.state = state
        """vLLM's `RequestState`."""
        self.extra_args = extra_args
        """`vllm_xargs` of the request."""
        self.strip = strip
        """Take the rows away from vLLM, so that the response does not carry them."""
        self.not_recorded = ""
        """Why it is not recorded, if it is not."""
        self.muted = False
        """Not recorded, or lost: its rows are taken away and go nowhere."""
        self.shown: list[np.ndarray] | None = None
        """Of the canary's own request: its rows go here."""
        self.rows = 0
        self.owed = len(info.prompt_token_ids) - info.row_start - 1
        """Rows that are due with the next step besides one for each new token: the prompt's."""
        self.source: deque[np.ndarray] = deque()
        """Rows on their way to the exporter thread."""

    @property
    def rows_due(self) -> int:
        """How many rows there must be by now: one for each token that was fed to the model."""
        tokens = int(self.state.detokenizer.num_output_tokens())
        return len(self.info.prompt_token_ids) - self.info.row_start + tokens - 1 if tokens else 0


def policy_spans(
    state: Any, extra_args: dict[str, Any], prompt_len: int, completion_len: int
) -> tuple[PolicySpan, ...]:
    """Return which policy version processed which tokens.

    vLLM >= 0.32 notes at which *output* token its weight version changed. Output token i
    is sampled from the row of token `prompt_len + i - 1`, so the span of rows begins
    there. Before 0.32, and while nobody has set a version ("default"), the request's own
    `vllm_xargs.policy_version` counts.
    """
    stop = prompt_len + completion_len
    starts: list[tuple[str, int]] = getattr(state, "weight_version_starts", [])
    if any(version != "default" for version, _ in starts):
        begins = [0, *(prompt_len + first - 1 for _, first in starts[1:])]
        ends = [*begins[1:], stop]
        return tuple(
            PolicySpan(version, begin, end)
            for (version, _), begin, end in zip(starts, begins, ends, strict=True)
        )
    given = extra_args.get("policy_version")
    return (PolicySpan(str(given), 0, stop),) if isinstance(given, str | int) else ()


def finish_reason_of(reason: Any) -> FinishReason:
    """Return vLLM's `FinishReason` as the text that the client sees.

    None means that the engine would have gone on: vLLM's front end found a stop string.
    """
    text = "stop" if reason is None else str(reason)
    return cast(FinishReason, text) if text in get_args(FinishReason) else "other"
