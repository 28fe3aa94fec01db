"""The rows that a step adds to its requests, as one array on the way to the front end.

vLLM sends an array for each request and step. With 256 requests that is 256 frames of a few
hundred bytes, each encoded, sent, received and decoded by itself, and each under the lock of
the engine's interpreter, and then of the front end's. A front end whose requests say `ASKS`
gets one array instead, `[1, tokens, layers, topk]` in place of the rows of the first request
that has any; nothing that vLLM sends has four dimensions. Its rows are scattered among the
outputs in their order, one for each new token. The rows of a prompt, which are more than its
new tokens, go as they always did.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from routereplay.patches.vllm.record import OpenRecord

logger = logging.getLogger(__name__)

ASKS = "routereplay_gathered"
"""Key of `SamplingParams.extra_args`: who sent this request can scatter gathered rows."""

_GATHERED = 4
"""Dimensions of gathered rows."""


def asks(request: Any) -> bool:
    """Tell whether the sender of the engine's `Request` takes gathered rows."""
    params = request.sampling_params
    return params is not None and ASKS in (params.extra_args or ())


def gather(outputs: Sequence[Any]) -> None:
    """Gather the rows of `EngineCoreOutput`s, if `Scatter` would find where they belong."""
    members = []
    for output in outputs:
        rows_TLK, tokens = output.routed_experts, len(output.new_token_ids)
        if rows_TLK is None:
            if tokens:
                return
        elif 0 < tokens == len(rows_TLK):
            members.append(output)
    if len(members) < 2:
        return
    rows_TLK = np.concatenate([output.routed_experts for output in members])
    for output in members:
        output.routed_experts = None
    members[0].routed_experts = rows_TLK[None]


class Scatter:
    """Gives gathered rows back to the outputs of one front end.

    Args:
        records: the open records. The rows of all others stay with vLLM until their request
            ends: they are copied, or each would hold the rows of its whole step in memory.
    """

    def __init__(self, records: Mapping[str, OpenRecord]) -> None:
        self._records = records
        self._rows_TLK: np.ndarray | None = None
        """Gathered rows of which some are not given: vLLM may pass a step in several parts."""
        self._given = 0
        self._seen = False

    def give(self, outputs: Sequence[Any]) -> None:
        """Give each `EngineCoreOutput` its rows; what is not gathered stays as it is."""
        gathered_TLK, given, records = self._rows_TLK, self._given, self._records
        for output in outputs:
            found = output.routed_experts
            if found is not None and found.ndim == _GATHERED:
                gathered_TLK, given = found[0], 0
                self._note()
            elif found is not None or gathered_TLK is None or not output.new_token_ids:
                continue
            begin, given = given, given + len(output.new_token_ids)
            rows_TLK = gathered_TLK[begin:given]
            record = records.get(output.request_id)
            taken = record is not None and record.strip
            output.routed_experts = rows_TLK if taken else rows_TLK.copy()
        is_left = gathered_TLK is not None and given < len(gathered_TLK)
        self._rows_TLK, self._given = gathered_TLK if is_left else None, given

    def _note(self) -> None:
        if not self._seen:
            self._seen = True
            logger.info("route recorder: the engine sends the rows of a step as one array")

    def drop(self, outputs: Sequence[Any]) -> None:
        """Let no gathered rows reach vLLM, which would take them for those of one request."""
        self._rows_TLK = None
        for output in outputs:
            if output.routed_experts is not None and output.routed_experts.ndim == _GATHERED:
                output.routed_experts = None
