"""Trajectories whose every row can be computed from its tokens, so alignment is checkable."""

from __future__ import annotations

import hashlib

import numpy as np

from routereplay.client import Trajectory
from routereplay.wire import ChunkRef, RecordManifest, RoutedExperts, digest, dtype_for
from routereplay.wire.lineage import TurnSpan, link_turns

LAYERS, TOPK, EXPERTS = 3, 2, 8


def expected_row(tokens, position, *, salt=0, layers=LAYERS, topk=TOPK, experts=EXPERTS):
    """`[layers, topk]` ids that depend on all tokens up to `position` and on `salt`."""
    seed = hashlib.blake2b(
        np.asarray(tokens[: position + 1], "<i4").tobytes() + bytes([salt]), digest_size=8
    ).digest()
    generator = np.random.default_rng(int.from_bytes(seed, "little"))
    return np.stack([generator.permutation(experts)[:topk] for _ in range(layers)])


def expected_rows(tokens, start, stop, **shape):
    rows = [expected_row(tokens, position, **shape) for position in range(start, stop)]
    experts, layers, topk = (shape.get(k, d) for k, d in _DEFAULTS.items())
    array = np.asarray(rows, dtype_for(experts)).reshape(stop - start, layers, topk)
    return array


_DEFAULTS = {"experts": EXPERTS, "layers": LAYERS, "topk": TOPK}


def turn(prompt, completion, *, request_id="chatcmpl-0", choice=0, row_start=0, **options):
    """One sealed turn with all its rows."""
    shape = {key: options.pop(key) for key in (*_DEFAULTS, "salt") if key in options}
    tokens = np.asarray([*prompt, *completion], np.int32)
    experts = expected_rows(tokens, row_start, len(tokens) - 1, **shape)
    experts.flags.writeable = False
    manifest = RecordManifest(
        request_id=request_id,
        choice=choice,
        num_layers=shape.get("layers", LAYERS),
        topk=shape.get("topk", TOPK),
        num_experts=shape.get("experts", EXPERTS),
        dtype=dtype_for(shape.get("experts", EXPERTS)),
        prompt_len=len(prompt),
        completion_len=len(completion),
        row_start=row_start,
        rows=len(experts),
        finish_reason="stop",
        chunks=(ChunkRef(len(experts), experts.nbytes, digest(experts.data)),),
        token_digest=digest(tokens.data),
        **options,
    )
    return RoutedExperts(experts, manifest, tokens, row_start)


def trajectory(*turns, trajectory_id="episode-0", unsealed=(), only_new_rows=True):
    """A trajectory as the store sends it: each turn holds only the rows that are new in it."""
    spans = [TurnSpan(t.token_ids, t.token_start, t.token_stop) for t in turns]
    sent = turns
    if only_new_rows:
        sent = tuple(
            RoutedExperts(
                t.experts[link.new_from - t.token_start :],
                t.manifest,
                t.token_ids,
                link.new_from,
                t.layer_start,
                link.parent,
            )
            for t, link in zip(turns, link_turns(spans), strict=True)
        )
    return Trajectory(trajectory_id, tuple(sent), tuple(unsealed))


def conversation(*lengths, salt_later=0, first_token=0):
    """Turns that extend each other: `lengths` are (new prompt tokens, completion tokens)."""
    turns, history = [], []
    token = first_token
    for index, (new, sampled) in enumerate(lengths):
        prompt = [*history, *range(token, token + new)]
        completion = list(range(token + new, token + new + sampled))
        token += new + sampled
        history = [*prompt, *completion]
        turns.append(
            turn(
                prompt,
                completion,
                request_id=f"chatcmpl-{index}",
                ordinal=index,
                engine_id="engine",
                salt=salt_later if index else 0,
            )
        )
    return turns, np.asarray(history, np.int32)
