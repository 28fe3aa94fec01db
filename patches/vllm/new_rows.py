"""Only new rows: where the rows of a request begin, so that none is recorded twice.

A turn that extends an earlier one leaves out the rows of what it repeats, and of the
choices of one request only the first has the prompt's. Everything else has all its rows:
another server or a restart knows no earlier turn, and neither another policy, another
adapter, an image in the prompt nor a start that the client chose is a continuation.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from routereplay.patches.vllm.prefix import KnownPrefixes, Lineage, ParentId, Shared
from routereplay.patches.vllm.record import OpenRecord, RecordInfo

_REQUESTS = 1024
"""Requests whose first choice is remembered; vLLM adds the choices of one in a row."""


class NewRows:
    """Decides for each request of one engine which rows it leaves out.

    Args:
        enabled: off, every record has all its rows.
    """

    def __init__(self, *, enabled: bool) -> None:
        self._enabled = enabled
        self._first_choices: OrderedDict[str, ParentId] = OrderedDict()
        self._weight_version = ""

    def begin(
        self,
        known: KnownPrefixes,
        request: Any,
        state: Any,
        info: RecordInfo,
        extra_args: Mapping[str, Any],
    ) -> tuple[RecordInfo, Lineage | None]:
        """Tell the engine which rows to leave out of `request`, whose parameters are its own.

        Returns:
            What is known of the record, with its parent if it is a delta, and its lineage:
            None if no other record may take rows from it.
        """
        if not self._enabled or info.row_start or getattr(request, "mm_features", None):
            return info, None
        given = extra_args.get("policy_version")
        policy = str(given) if isinstance(given, str | int) else ""
        lineage = Lineage(info.engine_id, info.model_name, policy, self._weight_version)
        shared = self._of_first_choice(state, info)
        if shared is None and info.trajectory_id is not None:
            shared = known.find(info.trajectory_id, lineage, info.prompt_token_ids)
        if shared is None or shared.parent[:2] == _id_of(info)[:2]:
            # The second: the same request once more, under the same id. It is no turn of its own.
            return info, lineage
        request.sampling_params.routed_experts_prompt_start = shared.rows
        return dataclasses.replace(info, row_start=shared.rows, parent=shared.parent), lineage

    def end(self, known: KnownPrefixes, record: OpenRecord, completion: Sequence[int]) -> None:
        """A record is whole: what follows it in its trajectory may be a delta on it."""
        starts = getattr(record.state, "weight_version_starts", ())
        if starts:
            self._weight_version = str(starts[-1][0])
        info, lineage = record.info, record.lineage
        if lineage is None or info.trajectory_id is None:
            return
        lineage = lineage._replace(weight_version=self._weight_version)
        prompt = info.prompt_token_ids
        known.note(info.trajectory_id, _id_of(info), lineage, prompt, completion)

    def _of_first_choice(self, state: Any, info: RecordInfo) -> Shared | None:
        """Return the prompt's rows as those of another choice, if there is one before this.

        The row of the last token of the prompt is each choice's own: it is the one that its
        first token was sampled from.
        """
        if state.parent_req is None:
            return None
        name = state.parent_req.request_id
        if state.request_index == 0:
            self._first_choices[name] = _id_of(info)
            if len(self._first_choices) > _REQUESTS:
                self._first_choices.popitem(last=False)
            return None
        first = self._first_choices.get(name)
        rows = len(info.prompt_token_ids) - 1
        return Shared(first, rows) if first is not None and rows else None


def _id_of(info: RecordInfo) -> ParentId:
    return ParentId(info.client.request_id, info.client.choice, info.upload_id)
