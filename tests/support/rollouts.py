"""What a trainer holds of a recorded conversation, and what it must be given for it."""

from __future__ import annotations

import itertools

import numpy as np

from support.frames import Upload
from support.populated import conversation


class Recorded:
    """A conversation as it lies in a store, and as a trainer tokenizes it."""

    def __init__(self, name: str, turns: int, seed: int, **shape: int) -> None:
        self.name = name
        self.uploads: list[Upload] = conversation(name, turns, seed, **shape)
        self.token_ids = self.uploads[-1].token_ids

    @property
    def experts(self) -> np.ndarray:
        """`[tokens - 1, layers, topk]` that sampled the tokens: the first captured row wins."""
        rows = self.uploads[-1].experts.copy()
        for upload in reversed(self.uploads):
            rows[: len(upload.experts)] = upload.experts
        return rows

    @property
    def sampled(self) -> np.ndarray:
        """`[tokens]` bool."""
        mask = np.zeros(len(self.token_ids), bool)
        for upload in self.uploads:
            mask[upload.manifest.prompt_len : len(upload.token_ids)] = True
        return mask

    @property
    def first_prompt(self) -> int:
        """Tokens of the first prompt."""
        return self.uploads[0].manifest.prompt_len

    def pieces(self) -> list[tuple[str, np.ndarray]]:
        """Role and tokens of each message."""
        edges = [0, *(np.flatnonzero(np.diff(self.sampled)) + 1), len(self.token_ids)]
        return [
            ("assistant" if self.sampled[start] else "user", self.token_ids[start:stop])
            for start, stop in itertools.pairwise(edges)
        ]

    def store_in(self, store) -> Recorded:
        """Put it into a `support.route_store.Store`."""
        for upload in self.uploads:
            store.put(upload)
        return self
