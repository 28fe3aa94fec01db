"""What can go wrong in silence between recorder and trainer: on the wire, in the store, at stitch.

A mutant is right in every shape that its station could check.
"""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np

from mutants import world as w
from mutants.changes import drafted, older, repeated, stale
from mutants.registry import mutant
from mutants.world import COMPLETION, FIRST_PROMPT, LAYERS, LENGTH, NEXT_PROMPT
from routereplay.client import Trajectory
from routereplay.wire import Chunk, decode_frame
from routereplay.wire.frame import read_prefix

# --- wire: between recorder and store ---------------------------------------------------------


def _flip(body, at):
    changed = bytearray(body)
    changed[at] ^= 1
    return bytes(changed)


def _payload_start(body):
    return read_prefix(body).payload_offset


def _is_chunk(body):
    return isinstance(decode_frame(body).header, Chunk)


@mutant("one bit of a row", "wire", short=True)
def _(body):
    return _flip(body, _payload_start(body)) if _is_chunk(body) else body


@mutant("rows shifted by one", "wire")
def _(body):
    if not _is_chunk(body):
        return body
    start, row = _payload_start(body), LAYERS * w.TOPK
    return body[:start] + body[start + row :] + body[start : start + row]


@mutant("rows zeroed", "wire")
def _(body):
    start = _payload_start(body)
    return body[:start] + bytes(len(body) - start) if _is_chunk(body) else body


@mutant("layers shifted by one", "wire")
def _(body):
    if not _is_chunk(body):
        return body
    start = _payload_start(body)
    return body[:start] + body[start + w.TOPK :] + body[start : start + w.TOPK]


@mutant("token edited in history", "wire")
def _(body):
    return body if _is_chunk(body) else _flip(body, _payload_start(body))


@mutant("header of another request", "wire")
def _(body):
    return body.replace(b"-0-1", b"-1-1").replace(b"-0-0", b"-1-0")


@mutant("frame cut short", "wire")
def _(body):
    return body[: len(body) - 64]


# --- store: what lies in the engine -----------------------------------------------------------


_ROWS = re.compile(rb":c\d+:")
"""In the key of a chunk's rows; token ids lie under `:k:`."""


def _values(store, name):
    keys = sorted(key for key in store.engine.scan_iter(f"*{name}*") if _ROWS.search(key))
    assert keys, f"the store holds no rows of {name}"
    return keys


@mutant("one bit of a row", "store", short=True)
def _(store, names):
    for name in names:
        for key in _values(store, name):
            store.engine.set(key, _flip(store.engine.get(key), 3), keepttl=True)


@mutant("rows shifted by one", "store")
def _(store, names):
    for name in names:
        for key in _values(store, name):
            value = store.engine.get(key)
            row = LAYERS * w.TOPK
            store.engine.set(key, value[row:] + value[:row], keepttl=True)


@mutant("rows zeroed", "store")
def _(store, names):
    for name in names:
        for key in _values(store, name):
            store.engine.set(key, bytes(store.engine.strlen(key)), keepttl=True)


@mutant("trajectories swapped", "store")
def _(store, names):
    one, other = (_values(store, name) for name in names[:2])
    for left, right in zip(one, other, strict=False):
        a, b = store.engine.get(left), store.engine.get(right)
        store.engine.set(left, b, keepttl=True)
        store.engine.set(right, a, keepttl=True)


@mutant("one row repeated", "store")
def _(store, names):
    for name in names:
        for key in _values(store, name):
            value, row = store.engine.get(key), LAYERS * w.TOPK
            store.engine.set(key, (value[:row] * len(value))[: len(value)], keepttl=True)


@mutant("layers shifted by one", "store")
def _(store, names):
    for name in names:
        for key in _values(store, name):
            value = store.engine.get(key)
            store.engine.set(key, value[w.TOPK :] + value[: w.TOPK], keepttl=True)


@mutant("turns swapped", "store")
def _(store, names):
    """The rows of two turns of one trajectory, each under the other's key."""
    for name in names:
        first, *_, last = _values(store, name)
        one, other = store.engine.get(first), store.engine.get(last)
        store.engine.set(first, other, keepttl=True)
        store.engine.set(last, one, keepttl=True)


@mutant("a value lost", "store")
def _(store, names):
    store.engine.delete(_values(store, names[0])[0])


@mutant("last turn deleted", "store")
def _(store, names):
    for name in names:
        store.http.delete(f"/v1/requests/chatcmpl-{name}-1").raise_for_status()


# --- stitch: turns to one sequence ------------------------------------------------------------


def _with(turn, experts):
    return replace(turn, experts=np.ascontiguousarray(experts))


def _turns(change):
    """Lift a change of a turn's own rows to all turns."""

    def stitch(trajectories):
        return [
            Trajectory(
                one.trajectory_id,
                tuple(
                    replace(t, experts=np.ascontiguousarray(change(t.experts))) for t in one.turns
                ),
                one.unsealed,
            )
            for one in trajectories
        ]

    return stitch


mutant("rows shifted by one", "stitch", seen="ms-swift#9804", short=True)(
    _turns(lambda rows: np.roll(rows, -1, 0))
)
mutant("layers shifted by one", "stitch", seen="verl#5037")(
    _turns(lambda rows: np.roll(rows, 1, 1))
)
mutant("rows zeroed", "stitch", seen="prime-rl#1807")(_turns(np.zeros_like))
mutant("one row repeated", "stitch")(_turns(repeated))
mutant("two MoE layers swapped", "stitch", seen="verl#5452")(
    _turns(lambda rows: rows[:, [0, 2, 1, 3]])
)
mutant("a third of the rows a stale row", "stitch", seen="vllm#39568")(_turns(stale))
mutant("a draft model's rows in one layer", "stitch", seen="vllm#48622")(_turns(drafted))
mutant("a stale prefix of an older policy", "stitch", seen="miles#3277", short=True)(
    _turns(lambda rows: older(rows, len(rows) // 2))
)


@mutant("the row between two turns zero", "stitch", seen="prime-rl#1807", short=True)
def _(trajectories):
    """The last sampled token of a turn got its route with the next turn's prompt."""
    found = []
    for one in trajectories:
        turns = list(one.turns)
        experts = turns[1].experts.copy()
        experts[0] = 0
        turns[1] = _with(turns[1], experts)
        found.append(Trajectory(one.trajectory_id, tuple(turns), one.unsealed))
    return found


@mutant("last turn lost", "stitch", seen="miles#1672", short=True)
def _(trajectories):
    return [Trajectory(one.trajectory_id, one.turns[:1], ()) for one in trajectories]


@mutant("choices swapped", "stitch")
def _(trajectories):
    found = []
    for one in trajectories:
        turns = list(one.turns)
        turns[1], turns[2] = (
            replace(turns[1], experts=turns[2].experts),
            replace(turns[2], experts=turns[1].experts),
        )
        found.append(Trajectory(one.trajectory_id, tuple(turns), one.unsealed))
    return found


@mutant("trajectories swapped", "stitch", short=True)
def _(trajectories):
    return [*trajectories[1:], trajectories[0]]


@mutant("token edited in history", "tokens", short=True)
def _(conversations):
    first = conversations[0]
    tokens = first.token_ids.copy()
    tokens[FIRST_PROMPT + 3] = tokens[FIRST_PROMPT + 3] % 500 + 1
    return [replace(first, token_ids=tokens), *conversations[1:]]


@mutant("chat template rewrites history", "tokens", seen="ART#701", short=True)
def _(conversations):
    """The second turn was sampled after a history from which the trainer dropped some tokens."""
    first = conversations[0]
    keep = np.ones(LENGTH, bool)
    keep[FIRST_PROMPT + 10 : FIRST_PROMPT + 20] = False
    return [
        replace(first, token_ids=first.token_ids[keep], trained=first.trained[keep]),
        *conversations[1:],
    ]


@mutant("chat template adds a token between two turns", "tokens", seen="prime-rl#1807")
def _(conversations):
    first = conversations[0]
    at = FIRST_PROMPT + COMPLETION
    tokens, trained = np.insert(first.token_ids, at, 7), np.insert(first.trained, at, False)
    return [
        replace(first, token_ids=tokens.astype(np.int32), trained=trained),
        *conversations[1:],
    ]


@mutant("conversations in another order", "tokens")
def _(conversations):
    return [*conversations[1:], conversations[0]]


@mutant("prompt tokens trained as if sampled", "tokens")
def _(conversations):
    trained = conversations[0].trained.copy()
    trained[FIRST_PROMPT + COMPLETION : FIRST_PROMPT + COMPLETION + NEXT_PROMPT] = True
    return [replace(conversations[0], trained=trained), *conversations[1:]]
