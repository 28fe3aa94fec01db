"""A request enters the engine: whether it is recorded, under which name, from which row."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from typing import Any

from routereplay.patches.vllm.exporter import Exporter
from routereplay.patches.vllm.gathered import ASKS
from routereplay.patches.vllm.headers import asked_in_headers
from routereplay.patches.vllm.identity import (
    ClientId,
    Ordinals,
    client_id,
    is_beam,
    trajectory_id,
    whole_client_id,
)
from routereplay.patches.vllm.new_rows import NewRows
from routereplay.patches.vllm.record import ModelFacts, OpenRecord, RecordInfo

_YES = frozenset({"1", "true", "yes"})
_NO = frozenset({"0", "false", "no"})


class Opening:
    """Makes the records of one engine's requests.

    Args:
        engine_id: the id of this front end.
        exporter: counts what is left out and what is not recorded.
        new_rows: decides where the rows of a request begin.
        keep_native: leave the rows in vLLM's own outputs as well.
        may_leave_out_all: this release survives a request that leaves out its whole prompt.
        in_engine: the front end is not Python: its external id is what the client sees.
    """

    def __init__(
        self,
        engine_id: str,
        exporter: Exporter,
        new_rows: NewRows,
        *,
        keep_native: bool,
        may_leave_out_all: bool,
        in_engine: bool = False,
    ) -> None:
        self._engine_id = engine_id
        self._exporter = exporter
        self._new_rows = new_rows
        self._keep_native = keep_native
        self._may_leave_out_all = may_leave_out_all
        self._in_engine = in_engine
        self._ordinals = Ordinals()
        self._uploads = itertools.count()

    def record(self, request: Any, state: Any, model: ModelFacts, *, whole: bool) -> OpenRecord:
        """Return the record of `request`; muted, and counted, if it is not to be recorded.

        Args:
            request: vLLM's `EngineCoreRequest`, which the engine does not have yet.
            state: its `RequestState`.
            model: sizes of the model's routes.
            whole: no row is left out, whoever has it.
        """
        # Its own from here on: the choices of a request share one object, and vLLM keeps it.
        params = request.sampling_params = copy.copy(request.sampling_params)
        given = params.extra_args or {}
        params.extra_args = {**given, ASKS: True}
        extra_args = {**asked_in_headers(), **given}
        asked = str(extra_args.get("return_routed_experts", "")).lower() in _YES
        self._keep_engine_alive(request)
        info = self._info(request, state, model, extra_args)
        strip = not (asked or self._keep_native)
        reason = _why_not(request, extra_args)
        lineage = None
        if strip and not reason and not whole:
            info, lineage = self._new_rows.begin(
                self._exporter.known, request, state, info, extra_args
            )
            if info.parent is not None:
                self._exporter.ledger.happened("left_out", info.row_start)
        record = OpenRecord(info, state, extra_args=extra_args, strip=strip, lineage=lineage)
        record.not_recorded = reason
        record.muted = bool(reason)
        return record

    def _keep_engine_alive(self, request: Any) -> None:
        """Some releases end the engine if a request leaves out all rows of its prompt."""
        params = request.sampling_params
        last = len(request.prompt_token_ids or ()) - 1
        if (params.routed_experts_prompt_start or 0) > last and not self._may_leave_out_all:
            params.routed_experts_prompt_start = max(last, 0)

    def _info(
        self, request: Any, state: Any, model: ModelFacts, extra_args: dict[str, Any]
    ) -> RecordInfo:
        client = self._client(request.external_req_id, state)
        session = getattr(request, "session_id", None) or extra_args.get("session_id")
        trajectory = trajectory_id(session, extra_args)
        adapter = request.lora_request
        return RecordInfo(
            upload_id=f"{self._engine_id}.{next(self._uploads)}",
            client=client,
            trajectory_id=trajectory,
            model=model,
            model_name=adapter.lora_name if adapter is not None else model.name,
            prompt_token_ids=request.prompt_token_ids or [],
            row_start=request.sampling_params.routed_experts_prompt_start or 0,
            engine_id=self._engine_id,
            ordinal=self._ordinals.of(trajectory, client.request_id),
            started_at=request.arrival_time,
        )

    def _client(self, external_id: str, state: Any) -> ClientId:
        if self._in_engine:
            return whole_client_id(external_id)
        parent = state.parent_req
        samples = parent.sampling_params.n if parent is not None else 1
        return client_id(external_id, state.request_index, samples, self._engine_id)


def _why_not(request: Any, extra_args: Mapping[str, Any]) -> str:
    """Return why a request is not recorded, or the empty string."""
    if str(extra_args.get("record_routes", "")).lower() in _NO:
        return "opted_out"
    if request.prompt_embeds is not None or not request.prompt_token_ids:
        return "prompt_embeds"
    if request.resumable:
        # Streaming input: later parts rewrite the prompt that rows were taken for.
        return "streaming_input"
    return "beam_search" if is_beam(request.external_req_id) else ""
