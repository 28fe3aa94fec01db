"""What can go wrong in silence between vLLM and the recorder.

A mutant is right in every shape that its station could check.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mutants import world as w
from mutants.changes import drafted, older, repeated, stale, twice, zeroed
from mutants.registry import mutant
from mutants.world import COMPLETION, EXPERTS, FIRST_PROMPT


def _on_rows(change):
    """Lift a change of `[rows, L, K]` to all requests of the engine."""

    def engine(requests):
        return [replace(one, rows=np.ascontiguousarray(change(one.rows))) for one in requests]

    return engine


_ROWS = {
    "rows shifted by one": (lambda rows: np.roll(rows, 1, 0), "ms-swift#9804", True),
    "layers shifted by one": (lambda rows: np.roll(rows, 1, 1), "verl#5037", False),
    "two MoE layers swapped": (lambda rows: rows[:, [0, 1, 3, 2]], "verl#5452", True),
    "all rows zero": (np.zeros_like, "vllm#44116, vllm#49184", True),
    "prompt rows zero": (lambda rows: zeroed(rows, FIRST_PROMPT), "tpu-inference#3583", False),
    "one row repeated": (repeated, "", False),
    "a third of the rows a stale row": (stale, "vllm#39568", False),
    "a draft model's rows in one layer": (drafted, "vllm#48622", False),
    "one row too few": (lambda rows: rows[:-1], "verl#6027", False),
    "padded rows behind the real ones": (lambda rows: _padded(rows), "sglang#36404", True),
    "one expert twice in a row": (twice, "verl#4986", False),
    "ids past the experts": (lambda rows: rows + np.uint8(EXPERTS), "", False),
    "int8 where uint16 belongs": (lambda rows: rows.astype(np.int8), "prime-rl#3051", False),
}


def _padded(rows):
    return np.concatenate([rows, np.repeat(rows[-1:], 3, 0)])


for _mutation, (_change, _seen, _short) in _ROWS.items():
    mutant(_mutation, "engine", seen=_seen, short=_short)(_on_rows(_change))


@mutant("choices swapped", "engine", short=True)
def _(requests):
    second = {(r.trajectory, r.choice): r.rows for r in requests if r.turn == 1}
    return [
        replace(r, rows=second[r.trajectory, 1 - r.choice]) if r.turn == 1 else r for r in requests
    ]


@mutant("trajectories swapped", "engine", seen="vllm#45635")
def _(requests):
    rows = {(r.trajectory, r.turn, r.choice): r.rows for r in requests}
    return [
        replace(r, rows=rows[(r.trajectory + 1) % w.TRAJECTORIES, r.turn, r.choice])
        for r in requests
    ]


@mutant("last turn lost", "engine", seen="NeMo-RL#3267")
def _(requests):
    return [r for r in requests if r.turn == 0]


@mutant("a stale prefix of an older policy", "engine", seen="miles#3277")
def _(requests):
    """The second turn's prompt rows come from weights that are not those it samples with."""
    found = []
    for r in requests:
        cut = r.prompt_len if r.turn == 0 else FIRST_PROMPT + COMPLETION
        policy = "1" if r.turn == 0 else "2"
        found.append(replace(r, rows=older(r.rows, cut), policy=policy))
    return found


@mutant("rows of the request that came after a preemption", "engine", seen="vllm#45635")
def _(requests):
    """From the middle on, what another request wrote into the same slots."""
    found = []
    for r in requests:
        after = requests[(requests.index(r) + len(requests) // w.TRAJECTORIES) % len(requests)]
        rows, half = r.rows.copy(), len(r.rows) // 2
        rows[half:] = after.rows[half:]
        found.append(replace(r, rows=rows))
    return found


@mutant("ids above 255 wrapped into bytes", "engine", seen="prime-rl#3051", short=True)
def _(requests):
    """The model has 300 experts; its rows come as bytes, distinct and in range."""
    return [replace(r, experts=300) for r in requests]
