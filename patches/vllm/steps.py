"""One step of the engine: its rows are taken by reference and handed to the exporter.

Runs on vLLM's event loop, twice a step, for every running request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from routereplay.patches.vllm.exporter import Exporter
from routereplay.patches.vllm.open_records import OpenRecords
from routereplay.patches.vllm.record import ModelFacts, OpenRecord, finish_reason_of

Taken: TypeAlias = list[tuple[OpenRecord, np.ndarray, int]]
"""Records of one engine step, their rows `[tokens, layers, topk]`, and how many they are."""


class Steps:
    """Takes the rows of each step.

    Args:
        model: sizes of the model's routes.
        records: the open records.
        exporter: brings rows to the store.
        keep_native: leave the rows in vLLM's own outputs as well.
    """

    def __init__(
        self, model: ModelFacts, records: OpenRecords, exporter: Exporter, *, keep_native: bool
    ) -> None:
        self._row_nbytes = model.row_nbytes
        self._open = records
        self._exporter = exporter
        self._keep_native = keep_native

    def take(self, outputs: Sequence[Any]) -> Taken:
        """Take the rows of a step's `EngineCoreOutput`s before vLLM looks at them."""
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
                    records.discard(record, rows, "rows_missing")
        return taken

    def settle(
        self, taken: Taken, outputs: Sequence[Any], states: Mapping[str, Any], before: int
    ) -> None:
        """Hand the rows on, after vLLM looked for stop strings.

        Args:
            taken: what `take` returned.
            outputs: the step's `EngineCoreOutput`s.
            states: the requests that are still live.
            before: how many there were before this step.
        """
        # Most steps end no request, and then nobody needs to be asked whether he is alive.
        ended = {} if len(states) == before else self._ended(outputs, states)
        self._hand_on(taken, ended)
        for record, output in ended.items():
            self._open.seal(record, finish_reason_of(output.finish_reason))

    def settle_finished(self, taken: Taken, outputs: Sequence[Any]) -> None:
        """Hand the rows on as they leave the engine, whose front end looks for stop strings."""
        ended = {}
        for output in outputs:
            if output.finish_reason is not None:
                record = self._open.pop(output.request_id, None)
                if record is not None:
                    ended[record] = output
        self._hand_on(taken, ended)
        for record, output in ended.items():
            reason = finish_reason_of(output.finish_reason)
            # Of a step with several tokens the front end may keep the first ones only.
            self._open.seal(record, reason, open_ended=len(output.new_token_ids) > 1)

    def _hand_on(self, taken: Taken, ended: Mapping[OpenRecord, Any]) -> None:
        if ended:
            taken = [_without_surplus(step, ended) for step in taken]
        total = sum([rows for _, _, rows in taken])
        if self._exporter.admit(len(taken), total, total * self._row_nbytes):
            for record, rows_TLK, rows in taken:
                record.owed = 0
                record.rows += rows
                record.source.append(rows_TLK)
        else:
            self._admit_each(taken)

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
            if self._exporter.admit(1, rows, rows * self._row_nbytes):
                record.owed = 0
                record.rows += rows
                record.source.append(rows_TLK)
            else:
                self._open.discard(record, rows, self._exporter.full_reason)


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
