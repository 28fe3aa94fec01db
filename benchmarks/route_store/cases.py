"""The operations that are measured, and how many useful bytes each of them moves."""

from __future__ import annotations

from dataclasses import dataclass

from route_store.data import ROW_NBYTES

LARGE_ROWS = 20_834
TURNS, TURN_ROWS = 10, 2_005
TRAJECTORIES, SHORT_TURN_ROWS = 64, 200
SMALL_ROWS = 100


@dataclass(frozen=True)
class Case:
    """One operation; `rows` is how many rows it moves."""

    name: str
    title: str
    rows: int
    repeat: int
    """Operations of one measurement."""

    @property
    def nbytes(self) -> int:
        """Useful bytes of one operation."""
        return self.rows * ROW_NBYTES


CASES = (
    Case("ingest", "ingest 8 MB", LARGE_ROWS, 3),
    Case("fetch", "fetch a request of 8 MB", LARGE_ROWS, 3),
    Case("trajectory", "fetch a trajectory, 10 turns, 7.7 MB", TURNS * TURN_ROWS, 3),
    Case(
        "batch",
        "fetch 64 trajectories, 640 turns, 49 MB",
        TRAJECTORIES * TURNS * SHORT_TURN_ROWS,
        1,
    ),
    Case("small_ingest", "ingest 38 KB", SMALL_ROWS, 20),
    Case("small_fetch", "fetch a request of 38 KB", SMALL_ROWS, 20),
)
