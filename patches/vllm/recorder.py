"""What happens at vLLM's seam, on its event loop: no method raises or blocks."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from routereplay.patches.vllm.exporter import Exporter
from routereplay.patches.vllm.gathered import Scatter
from routereplay.patches.vllm.guard import Guard
from routereplay.patches.vllm.ledger import Stats
from routereplay.patches.vllm.new_rows import NewRows
from routereplay.patches.vllm.open_records import OpenRecords
from routereplay.patches.vllm.opening import Opening
from routereplay.patches.vllm.record import ModelFacts
from routereplay.patches.vllm.steps import Steps, Taken
from routereplay.wire.ids import new_engine_id

logger = logging.getLogger(__name__)


class Recorder:
    """Records the requests of one engine front end.

    Args:
        model: sizes of the model's routes.
        exporter: brings rows to the store.
        keep_native: leave the rows in vLLM's own outputs as well.
        only_new_rows: leave out rows that an earlier turn or choice has.
        may_leave_out_all: this release survives a request that leaves out its whole prompt.
        in_engine: it stands in the engine core, and the front end is not Python.
    """

    def __init__(
        self,
        model: ModelFacts,
        exporter: Exporter,
        *,
        keep_native: bool,
        only_new_rows: bool = True,
        may_leave_out_all: bool = True,
        in_engine: bool = False,
    ) -> None:
        self.engine_id = new_engine_id()
        self._model = model
        self._exporter = exporter
        self._probes: dict[str, list[np.ndarray]] = {}
        self._refused = ""
        new_rows = NewRows(enabled=only_new_rows)
        self.open = OpenRecords(exporter, new_rows, in_engine=in_engine)
        """By the engine's own request id."""
        self._steps = Steps(model, self.open, exporter, keep_native=keep_native)
        self._scatter = Scatter(self.open)
        self._opening = Opening(
            self.engine_id,
            exporter,
            new_rows,
            keep_native=keep_native,
            may_leave_out_all=may_leave_out_all,
            in_engine=in_engine,
        )
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
        self.accept()

    def refuse(self, reason: str) -> None:
        """Record nothing from now on: every request is counted and reported as lost."""
        self._refused = reason

    def accept(self) -> None:
        """Record again what comes from now on."""
        self._refused = ""

    def request_added(self, request: Any, state: Any) -> None:
        """vLLM accepted `request` (`EngineCoreRequest`) and made `state` (`RequestState`)."""
        self._guard.run(self._request_added, request, state)

    def scatter(self, outputs: Sequence[Any]) -> None:
        """Give a step's `EngineCoreOutput`s the rows that came as one array, also when off."""
        try:
            self._scatter.give(outputs)
        except Exception:
            self._exporter.ledger.internal_error()
            logger.exception("route recorder: the rows of a step are lost; vLLM serves")
            self._scatter.drop(outputs)

    def take(self, outputs: Sequence[Any]) -> Taken | None:
        """Take the rows of a step's `EngineCoreOutput`s before vLLM looks at them."""
        return self._guard.run(self._steps.take, outputs)

    def settle(
        self, taken: Taken | None, outputs: Sequence[Any], states: Mapping[str, Any], before: int
    ) -> None:
        """Hand on what `take` returned, after vLLM looked for stop strings."""
        self._guard.run(self._steps.settle, taken or [], outputs, states, before)

    def settle_finished(self, taken: Taken | None, outputs: Sequence[Any]) -> None:
        """Hand on what `take` returned, as it leaves the engine."""
        self._guard.run(self._steps.settle_finished, taken or [], outputs)

    def requests_aborted(self, engine_request_ids: Iterable[str]) -> None:
        """Requests ended by their client: what they have is sealed."""
        self._guard.run(self.open.abort, engine_request_ids)

    def engine_failed(self) -> None:
        """The engine died: no open record can be completed."""
        self._guard.run(self.open.lose_all, "engine_error")

    def engine_stopped(self) -> None:
        """The server shuts down: what open requests have is sealed, while there is time."""
        self._guard.run(self.open.abort, list(self.open))

    def failed(self) -> None:
        """Count an error of the code around this recorder."""
        self._exporter.ledger.internal_error()

    def give_up(self) -> None:
        """No open record can be completed, by our own fault."""
        self._guard.run(self.open.lose_all, "internal_error")

    def _request_added(self, request: Any, state: Any) -> None:
        if request.sampling_params is None or request.request_id in self.open:
            return
        shown = self._probes.pop(request.external_req_id, None)
        whole = shown is not None or bool(self._refused)
        record = self._opening.record(request, state, self._model, whole=whole)
        if shown is not None:
            record.muted, record.shown = True, shown
        elif record.not_recorded:
            self._exporter.ledger.not_recorded(record.not_recorded)
        else:
            self._exporter.open(record.info, record.source)
            if self._refused:
                self._exporter.ledger.not_recorded(self._refused)
                self.open.lose(record, self._refused)
        self.open[request.request_id] = record

    def _switched_off(self) -> None:
        self.open.lose_all("internal_error")
