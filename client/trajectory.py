"""`Trajectory`: the turns that one agent episode left in the store."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from routereplay.wire.records import TurnStatus
from routereplay.wire.routes import RoutedExperts


@dataclass(frozen=True, eq=False, slots=True)
class Trajectory:
    """Everything the store knows of one trajectory."""

    trajectory_id: str

    turns: tuple[RoutedExperts, ...]
    """Sealed turns in the order of capture; each holds only the rows that are new in it."""

    unsealed: tuple[TurnStatus, ...] = ()
    """Turns without routes: pending, or dropped with the recorder's reason."""

    @classmethod
    def of(cls, routes: RoutedExperts) -> Trajectory:
        """Return a trajectory of the one turn `routes`."""
        manifest = routes.manifest
        return cls(manifest.trajectory_id or manifest.request_id, (routes,))

    def sequences(self) -> list[np.ndarray]:
        """Return the token ids, `[tokens]` int32 each, that this trajectory can be trained on.

        One for each turn that no other turn continues: a single one for a conversation
        whose turns extend each other, one for each choice of a request with n > 1, and
        a further one wherever the agent rewrote its history.
        """
        tokens = [turn.token_ids for turn in self.turns]
        return [
            mine
            for index, mine in enumerate(tokens)
            if not any(
                _starts_with(other, mine) and (len(other) > len(mine) or later > index)
                for later, other in enumerate(tokens)
                if later != index
            )
        ]

    def describe_turn(self, index: int) -> str:
        """Return `turn 1 (chatcmpl-..., choice 0)`: how errors name a turn."""
        manifest = self.turns[index].manifest
        return f"turn {index} ({manifest.request_id}, choice {manifest.choice})"


def _starts_with(tokens: np.ndarray, prefix: np.ndarray) -> bool:
    return len(tokens) >= len(prefix) and bool((tokens[: len(prefix)] == prefix).all())
