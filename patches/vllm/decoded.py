"""A step that only decodes, as the releases up to 0.30 see it: all its rows in one operation.

vLLM finds the rows of each request by itself, although in such a step they are the rows of
one array in the model runner's order, one for each request. Anything else (a prompt, a
draft, a token that is computed again) is left to vLLM.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np


class Decoded(NamedTuple):
    """The rows of a step that only decoded."""

    rows_TLK: np.ndarray
    row_of: Mapping[str, int]
    """Which of them is a request's."""

    def give(self, outputs: Sequence[Any], *, gathered: bool, taken: bool = False) -> None:
        """Give `EngineCoreOutput`s their rows: gathered, or each his own.

        `taken`: the recorder is here and has them all in a moment, so they may share an array.
        """
        members = [output for output in outputs if output.new_token_ids]
        found = [self.row_of[output.request_id] for output in members]
        if gathered and len(members) > 1:
            members[0].routed_experts = self.rows_TLK[found][None]
        elif taken:
            rows_TLK = self.rows_TLK[found]
            for begin, output in enumerate(members):
                output.routed_experts = rows_TLK[begin : begin + 1]
        else:
            for output, row in zip(members, found, strict=True):
                output.routed_experts = self.rows_TLK[[row]]


def take_decoded(scheduler: Any, plan: Any, result: Any) -> Decoded | None:
    """Keep the routes of a step and take them away from vLLM; None if it does not only decode.

    Args:
        scheduler: vLLM's `Scheduler`.
        plan: the step's `SchedulerOutput`.
        result: its `ModelRunnerOutput`.
    """
    unread = scheduler.__dict__.get("_re_block_ids")
    routes = getattr(result, "routed_experts", None)
    scheduled = plan.num_scheduled_tokens
    if (
        unread is None
        or routes is None
        or plan.scheduled_spec_decode_tokens
        or not plan.total_num_scheduled_tokens == len(scheduled) == len(routes.routing_data)
        or len(result.req_id_to_index) != len(scheduled)
        or not unread.keys().isdisjoint(scheduled)
    ):
        return None
    kept = scheduler.routed_experts_mgr
    rows_TLK = routes.routing_data.astype(kept.routed_experts_by_slot.dtype, copy=False)
    # Before a request of this step can end, as vLLM does it: its blocks may be another's then.
    kept.store_batch(rows_TLK, routes.slot_mapping)
    result.routed_experts = None
    return Decoded(rows_TLK, result.req_id_to_index)
