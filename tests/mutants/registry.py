"""The list of mutants: which mutation stands at which station, and where others met it."""

from __future__ import annotations

from dataclasses import dataclass

from mutants.world import Hooks


@dataclass(frozen=True)
class Mutant:
    """One mutation at one station."""

    mutation: str
    station: str
    hooks: Hooks
    seen: str = ""
    """Where it was seen, in peers or in Megatron-Core's history."""
    short: bool = False
    """Runs in ./scripts/test."""

    @property
    def name(self) -> str:
        return f"{self.station}: {self.mutation}"


MUTANTS: list[Mutant] = []


def mutant(mutation: str, station: str, *, seen: str = "", short: bool = False):
    """Register the function below as the hook of its station."""

    def register(function):
        MUTANTS.append(Mutant(mutation, station, Hooks(**{station: function}), seen, short))
        return function

    return register
