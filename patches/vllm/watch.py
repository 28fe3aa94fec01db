"""The rows of every record are looked at on their way out, for what real routes never show.

Runs on the exporter thread and looks at a sample of each chunk, so that its cost does not
grow with the traffic; what it reports is impossible, not unlikely. A record that shows it
is sealed all the same, with the reasons in its manifest, and a trainer refuses it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from routereplay.patches.vllm.record import ModelFacts

ZERO_ROWS = "zero_rows"
REPEATED_EXPERTS = "repeated_experts"
SHIFTED_LAYERS = "shifted_layers"
STALE_ROWS = "stale_rows"

REASONS: dict[str, str] = {
    ZERO_ROWS: "a MoE layer's row is all zero: its kernel bypassed capture",
    REPEATED_EXPERTS: "a row names an expert twice",
    SHIFTED_LAYERS: "a dense layer has a row: the layers are not where they were at start",
    STALE_ROWS: "different tokens in a row have the same row in every layer",
}

_SAMPLE = 32
"""Rows of a chunk whose planes are looked at."""
_STALE_RUN = 8
"""Equal rows one after the other ..."""
_STALE_TOKENS = 4
"""... of at least this many different tokens. A text that repeats itself has fewer."""


class Watch:
    """Looks at the rows of one record.

    Args:
        model: its sizes, and the layers that route if the canary has seen them.
    """

    def __init__(self, model: ModelFacts) -> None:
        moe = model.moe_layers
        self._moe = None if moe is None or model.topk == 1 else list(moe)
        self._dense = [n for n in range(model.num_layers) if n not in (moe or range(n + 1))]
        self._found: set[str] = set()
        self._last: np.ndarray | None = None
        self._seen = 0
        self._run_from = 0
        self._runs: list[tuple[int, int]] = []

    def look(self, rows_TLK: np.ndarray) -> None:
        """Look at the next rows, `[tokens, layers, topk]`, C order."""
        if len(rows_TLK):
            self._look_at_planes(rows_TLK[:: -(-len(rows_TLK) // _SAMPLE)])
            self._look_for_runs(rows_TLK.reshape(len(rows_TLK), -1))

    def verdict(self, token_ids: Sequence[int] | np.ndarray) -> tuple[str, ...]:
        """Return what was found, sorted.

        Args:
            token_ids: the tokens that the rows belong to, the first row's first.
        """
        self._note_run()
        for start, stop in self._runs:
            tokens = np.asarray(token_ids[start:stop])
            if len(np.unique(tokens)) >= _STALE_TOKENS:
                self._found.add(STALE_ROWS)
                break
        return tuple(sorted(self._found))

    def _look_at_planes(self, sample_TLK: np.ndarray) -> None:
        if self._moe is not None:
            moe_TLK = sample_TLK[:, self._moe]
            twice = moe_TLK[..., 0] == moe_TLK[..., 1]
            if twice.any():
                zero = not moe_TLK[twice].any(axis=-1).all()
                self._found.add(ZERO_ROWS if zero else REPEATED_EXPERTS)
        if self._dense and sample_TLK[:, self._dense].any():
            self._found.add(SHIFTED_LAYERS)

    def _look_for_runs(self, rows: np.ndarray) -> None:
        if self._last is not None and not np.array_equal(self._last, rows[0]):
            self._note_run()
            self._run_from = self._seen
        # One column tells nearly all rows apart; only the others are compared whole.
        maybe = np.flatnonzero(rows[1:, -1] == rows[:-1, -1])
        same = np.zeros(len(rows) - 1, bool)
        same[maybe] = (rows[maybe + 1] == rows[maybe]).all(axis=-1)
        breaks = np.flatnonzero(~same) + 1
        if len(breaks):
            edges = np.concatenate([[self._run_from], breaks + self._seen])
            long = np.flatnonzero(np.diff(edges) >= _STALE_RUN)
            self._runs += [(int(edges[run]), int(edges[run + 1])) for run in long]
            self._run_from = int(edges[-1])
        self._last = rows[-1]
        self._seen += len(rows)

    def _note_run(self) -> None:
        if self._seen - self._run_from >= _STALE_RUN:
            self._runs.append((self._run_from, self._seen))
