"""What happens at vLLM's seam: rows are taken by reference and handed to the exporter.

Runs on vLLM's event loop. No method raises or blocks; the work for one output of one
step is a few look-ups and an append, about 1 us, whatever the size of its rows.
"""

from __future__ import annotations

import copy
import itertools
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np

from routereplay.patches.vllm.exporter import Exporter
from routereplay.patches.vllm.guard import Guard
from routereplay.patches.vllm.headers import asked_in_headers
from routereplay.patches.vllm.identity import Ordinals, client_id, is_beam, trajectory_id
from routereplay.patches.vllm.ledger import Stats
from routereplay.patches.vllm.new_rows import NewRows
from routereplay.patches.vllm.record import (
    Ending,
    ModelFacts,
    OpenRecord,
    RecordInfo,
    finish_reason_of,
    policy_spans,
)
from routereplay.wire.ids import new_engine_id
from routereplay.wire.records import FinishReason

logger = logging.getLogger(__name__)

_YES = frozenset({"1", "true", "yes"})
_NO = frozenset({"0", "false", "no"})


Taken: TypeAlias = list[tuple[OpenRecord, np.ndarray, int]]
"""Records of one engine step, their rows `[tokens, layers, topk]`, and how many they are."""


class Recorder:
    """Records the requests of one engine front end.

    Args:
        model: sizes of the model's routes.
        exporter: brings rows to the store.
        keep_native: leave the rows in vLLM's own outputs as well.
        only_new_rows: leave out rows that an earlier turn or choice has.
        may_leave_out_all: this release survives a request that leaves out its whole prompt.
    """

    def __init__(
        self,
        model: ModelFacts,
        exporter: Exporter,
        *,
        keep_native: bool,
        only_new_rows: bool = True,
        may_leave_out_all: bool = True,
    ) -> None:
        self.engine_id = new_engine_id()
        self._model = model
        self._exporter = exporter
        self._keep_native = keep_native
        self._open: dict[str, OpenRecord] = {}
        self._probes: dict[str, list[np.ndarray]] = {}
        self._refused = ""
        self._ordinals = Ordinals()
        self._may_leave_out_all = may_leave_out_all
        self._new_rows = NewRows(enabled=only_new_rows)
        self._uploads = itertools.count()
        self._guard = Guard(logger, exporter.ledger.internal_error, self._switched_off)

    def stats(self) -> Stats:
        """Return the counters of this process."""
        return self._exporter.stats()

    @property
    def model(self) -> ModelFacts:
        """Sizes of the model's routes."""
        return self._model

    def show_rows_of(self, request_id: str, steps: list[np.ndarray]) -> None:
        """Put the rows of a request of our own into `steps`, and record nothing of it."""
        self._probes[request_id] = steps

    def proven(self, moe_layers: tuple[int, ...]) -> None:
        """The canary has seen real routes in these layers."""
        self._model = replace(self._model, moe_layers=moe_layers)

    def refuse(self, reason: str) -> None:
        """Record nothing from now on: every request is counted and reported as lost."""
        self._refused = reason

    def request_added(self, request: Any, state: Any) -> None:
        """vLLM accepted `request` (`EngineCoreRequest`) and made `state` (`RequestState`)."""
        self._guard.run(self._request_added, request, state)

    def take(self, outputs: Sequence[Any]) -> Taken | None:
        """Take the rows of a step's `EngineCoreOutput`s before vLLM looks at them."""
        return self._guard.run(self._take, outputs)

    def settle(
        self, taken: Taken | None, outputs: Sequence[Any], states: Mapping[str, Any], before: int
    ) -> None:
        """Hand the rows on, after vLLM looked for stop strings.

        Args:
            taken: what `take` returned.
            outputs: the step's `EngineCoreOutput`s.
            states: the requests that are still live.
            before: how many there were before this step.
        """
        self._guard.run(self._settle, taken or [], outputs, states, before)

    def requests_aborted(self, engine_request_ids: Iterable[str]) -> None:
        """Requests ended by their client: what they have is sealed."""
        self._guard.run(self._requests_aborted, engine_request_ids)

    def engine_failed(self) -> None:
        """The engine died: no open record can be completed."""
        self._guard.run(self._lose_open, "engine_error")

    def engine_stopped(self) -> None:
        """The server shuts down: what open requests have is sealed, while there is time."""
        self._guard.run(self._requests_aborted, list(self._open))

    def _request_added(self, request: Any, state: Any) -> None:
        params = request.sampling_params
        if params is None or request.request_id in self._open:
            return
        extra_args = {**asked_in_headers(), **(params.extra_args or {})}
        asked = str(extra_args.get("return_routed_experts", "")).lower() in _YES
        self._keep_engine_alive(request)
        info = self._info(request, state, extra_args)
        strip = not (asked or self._keep_native)
        reason = _why_not(request, extra_args)
        shown = self._probes.pop(request.external_req_id, None)
        lineage = None
        if strip and not reason and shown is None and not self._refused:
            info, lineage = self._new_rows.begin(
                self._exporter.known, request, state, info, extra_args
            )
            if info.parent is not None:
                self._exporter.ledger.happened("left_out", info.row_start)
        record = OpenRecord(info, state, extra_args=extra_args, strip=strip, lineage=lineage)
        if shown is not None:
            record.muted, record.shown = True, shown
        elif reason:
            self._exporter.ledger.not_recorded(reason)
            record.muted = True
        else:
            self._exporter.open(info, record.source)
            if self._refused:
                self._exporter.ledger.not_recorded(self._refused)
                self._lose(record, self._refused)
        self._open[request.request_id] = record

    def _keep_engine_alive(self, request: Any) -> None:
        """Some releases end the engine if a request leaves out all rows of its prompt."""
        params = request.sampling_params
        last = len(request.prompt_token_ids or ()) - 1
        if (params.routed_experts_prompt_start or 0) > last and not self._may_leave_out_all:
            params = copy.copy(params)
            params.routed_experts_prompt_start = max(last, 0)
            request.sampling_params = params

    def _info(self, request: Any, state: Any, extra_args: dict[str, Any]) -> RecordInfo:
        parent = state.parent_req
        samples = parent.sampling_params.n if parent is not None else 1
        client = client_id(request.external_req_id, state.request_index, samples, self.engine_id)
        session = getattr(request, "session_id", None) or extra_args.get("session_id")
        trajectory = trajectory_id(session, extra_args)
        adapter = request.lora_request
        return RecordInfo(
            upload_id=f"{self.engine_id}.{next(self._uploads)}",
            client=client,
            trajectory_id=trajectory,
            model=self._model,
            model_name=adapter.lora_name if adapter is not None else self._model.name,
            prompt_token_ids=request.prompt_token_ids or [],
            row_start=request.sampling_params.routed_experts_prompt_start or 0,
            engine_id=self.engine_id,
            ordinal=self._ordinals.of(trajectory, client.request_id),
            started_at=request.arrival_time,
        )

    def _take(self, outputs: Sequence[Any]) -> Taken:
        records = self._open
        taken = []
        for output in outputs:
            rows_TLK = output.routed_experts
            if rows_TLK is None:
                continue
            record = records.get(output.request_id)
            if record is not None:
                if record.strip:
                    output.routed_experts = None
                if record.muted:
                    if record.shown is not None:
                        record.shown.append(rows_TLK.copy())
                    continue
                rows = len(rows_TLK)
                if self._keep_native:
                    # Its engine may run in this process and use the buffer for the next step.
                    rows_TLK = rows_TLK.copy()
                # vLLM sends no position: a step of another length would shift the rest.
                if rows == record.owed + len(output.new_token_ids):
                    taken.append((record, rows_TLK, rows))
                else:
                    self._discard(record, rows, "rows_missing")
        return taken

    def _settle(
        self, taken: Taken, outputs: Sequence[Any], states: Mapping[str, Any], before: int
    ) -> None:
        # Most steps end no request, and then nobody needs to be asked whether he is alive.
        ended = {} if len(states) == before else self._ended(outputs, states)
        if ended:
            taken = [_without_surplus(step, ended) for step in taken]
        total = sum([rows for _, _, rows in taken])
        if self._exporter.admit(len(taken), total, total * self._model.row_nbytes):
            for record, rows_TLK, rows in taken:
                record.owed = 0
                record.rows += rows
                record.source.append(rows_TLK)
        else:
            self._admit_each(taken)
        for record, output in ended.items():
            self._end(record, finish_reason_of(output.finish_reason))

    def _ended(self, outputs: Sequence[Any], states: Mapping[str, Any]) -> dict[OpenRecord, Any]:
        """Return the records that this step ended, each with its output."""
        ended = {}
        for output in outputs:
            if output.request_id not in states:
                record = self._open.pop(output.request_id, None)
                if record is not None:
                    ended[record] = output
        return ended

    def _admit_each(self, taken: Taken) -> None:
        """Not all rows of a step fit: what fits goes on, what does not is lost."""
        for record, rows_TLK, rows in taken:
            if self._exporter.admit(1, rows, rows * self._model.row_nbytes):
                record.owed = 0
                record.rows += rows
                record.source.append(rows_TLK)
            else:
                self._discard(record, rows, self._exporter.full_reason)

    def _end(self, record: OpenRecord, finish_reason: FinishReason) -> None:
        """Seal a record that is closed, if every row that it must have is there."""
        if record.muted:
            return
        completion = record.state.detokenizer.output_token_ids
        if finish_reason == "error":
            self._lose(record, "engine_error")
        elif not completion:
            self._lose(record, "aborted")
        elif record.rows != record.rows_due:
            self._lose(record, "rows_missing")
        else:
            if finish_reason == "abort":
                # At shutdown vLLM may still append to its list; of other requests it is final.
                completion = list(completion)
            prompt_len = len(record.info.prompt_token_ids)
            spans = policy_spans(record.state, record.extra_args, prompt_len, len(completion))
            self._exporter.seal(record.info, Ending(completion, finish_reason, spans))
            self._new_rows.end(self._exporter.known, record, completion)

    def _requests_aborted(self, engine_request_ids: Iterable[str]) -> None:
        for engine_request_id in engine_request_ids:
            record = self._open.pop(engine_request_id, None)
            if record is not None:
                self._end(record, "abort")

    def _discard(self, record: OpenRecord, rows: int, reason: str) -> None:
        """Count rows that are not taken as dropped; their record is lost."""
        self._exporter.ledger.discard(rows, rows * self._model.row_nbytes, reason)
        self._lose(record, reason)

    def _lose(self, record: OpenRecord, reason: str) -> None:
        if not record.muted:
            record.muted = True
            self._exporter.drop(record.info, reason)

    def _lose_open(self, reason: str) -> None:
        for record in self._open.values():
            self._lose(record, reason)
        self._open.clear()

    def _switched_off(self) -> None:
        self._lose_open("internal_error")


def _without_surplus(
    step: tuple[OpenRecord, np.ndarray, int], ended: Mapping[OpenRecord, Any]
) -> tuple[OpenRecord, np.ndarray, int]:
    """Cut the rows of a request that ended to the tokens that are left.

    With speculative decoding one step may bring tokens past a stop string; vLLM >= 0.32
    takes them back (in `new_token_ids` too), and their rows belong to nobody.
    """
    record, rows_TLK, rows = step
    if record not in ended:
        return step
    due = record.owed + len(ended[record].new_token_ids)
    if due >= rows:
        return step
    return record, rows_TLK[:due], due


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
