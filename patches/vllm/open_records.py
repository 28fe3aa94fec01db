"""The requests that are running: which records are open, and how each of them ends."""

from __future__ import annotations

from collections.abc import Iterable

from routereplay.patches.vllm.exporter import Exporter
from routereplay.patches.vllm.new_rows import NewRows
from routereplay.patches.vllm.record import Ending, OpenRecord, policy_spans
from routereplay.wire.records import FinishReason


class OpenRecords(dict[str, OpenRecord]):
    """The open records of one engine, by the engine's own request id.

    Args:
        exporter: is told what becomes of each.
        new_rows: learns what later records may leave out.
        in_engine: the front end lies behind: what it ended, it may have cut.
    """

    def __init__(self, exporter: Exporter, new_rows: NewRows, *, in_engine: bool = False) -> None:
        super().__init__()
        self._exporter = exporter
        self._new_rows = new_rows
        self._in_engine = in_engine

    def abort(self, engine_request_ids: Iterable[str]) -> None:
        """Requests ended by their client: what they have is sealed."""
        for engine_request_id in engine_request_ids:
            record = self.pop(engine_request_id, None)
            if record is not None:
                self.seal(record, "abort", open_ended=self._in_engine)

    def seal(
        self, record: OpenRecord, finish_reason: FinishReason, *, open_ended: bool = False
    ) -> None:
        """Seal a record that is closed, if every row that it must have is there."""
        if record.muted:
            return
        completion = record.state.detokenizer.output_token_ids
        if finish_reason == "error":
            self.lose(record, "engine_error")
        elif not completion:
            self.lose(record, "aborted")
        elif record.rows != record.rows_due:
            self.lose(record, "rows_missing")
        else:
            if finish_reason == "abort":
                # At shutdown vLLM may still append to its list; of other requests it is final.
                completion = list(completion)
            prompt_len = len(record.info.prompt_token_ids)
            spans = policy_spans(record.state, record.extra_args, prompt_len, len(completion))
            self._exporter.seal(record.info, Ending(completion, finish_reason, spans, open_ended))
            self._new_rows.end(self._exporter.known, record, completion)

    def discard(self, record: OpenRecord, rows: int, reason: str) -> None:
        """Count rows that are not taken as dropped; their record is lost."""
        self._exporter.ledger.discard(rows, rows * record.info.model.row_nbytes, reason)
        self.lose(record, reason)

    def lose(self, record: OpenRecord, reason: str) -> None:
        """Report a record as lost, once."""
        if not record.muted:
            record.muted = True
            self._exporter.drop(record.info, reason)

    def lose_all(self, reason: str) -> None:
        """Report all of them as lost."""
        for record in self.values():
            self.lose(record, reason)
        self.clear()
