"""A store filled as an afternoon of training leaves it: trajectories, policies, losses."""

from __future__ import annotations

import numpy as np

from routereplay.wire import ChunkRef, PolicySpan, digest
from support.frames import Upload, make_upload

HOSTILE = "<img src=x onerror=alert(1)>"


def skewed(upload: Upload, seed: int, *, tilt: float = 0.0) -> Upload:
    """The same upload with rows as a router makes them: distinct, uneven, layer 0 dense."""
    manifest = upload.manifest
    draw = np.random.default_rng(seed)
    weights = np.random.default_rng(7).normal(size=(manifest.num_layers, manifest.num_experts))
    weights[manifest.num_layers // 2] += tilt * np.linspace(-1, 1, manifest.num_experts)
    noise = draw.gumbel(size=(manifest.rows, *weights.shape))
    experts = np.argsort(-(0.6 * weights + noise), -1)[..., : manifest.topk].astype(manifest.dtype)
    experts[:, 0] = 0
    step = manifest.chunks[0].rows
    pieces = [experts[at : at + step] for at in range(0, manifest.rows, step)]
    chunks = tuple(ChunkRef(len(piece), piece.nbytes, digest(piece.data)) for piece in pieces)
    changed = upload.changed(chunks=chunks)
    return Upload(changed.upload_id, changed.manifest, experts, upload.token_ids)


def conversation(
    trajectory_id: str, turns: int, seed: int, *, policy: str = "41", tilt: float = 0.0, **shape
) -> list[Upload]:
    """Turns of one trajectory of a small mixture of experts."""
    draw = np.random.default_rng(seed)
    tokens = draw.integers(0, 30000, 60)
    uploads = []
    for turn in range(turns):
        answer = int(draw.integers(20, 60))
        tokens = np.concatenate([tokens, draw.integers(0, 30000, answer)])
        upload = make_upload(
            f"chatcmpl-{trajectory_id}-{turn}",
            seed=seed * 100 + turn,
            trajectory_id=trajectory_id,
            token_ids=tokens,
            completion_len=answer,
            ordinal=turn,
            engine_id="engine-7f3a",
            policy_versions=(PolicySpan(policy, 0, len(tokens)),),
            **{"num_layers": 24, "num_experts": 64, "topk": 6, "chunk_rows": 64, **shape},
        )
        uploads.append(skewed(upload, seed * 100 + turn, tilt=tilt))
        tokens = np.concatenate([tokens, draw.integers(0, 30000, int(draw.integers(10, 40)))])
    return uploads


def populate(store) -> None:
    """Fill a `support.route_store.Store`."""
    for number in range(6):
        for upload in conversation(f"episode-{number}", 2 + number % 4, seed=number):
            store.put(upload)
    for upload in conversation("episode-tilted", 3, seed=20, policy="42", tilt=2.0):
        store.put(upload)
    hostile = make_upload("chatcmpl-hostile", seed=30, engine_id=HOSTILE)
    store.put(hostile.changed(model=HOSTILE, policy_versions=(PolicySpan(HOSTILE, 0, 33),)))
    poisoned = make_upload("chatcmpl-poisoned", seed=32, trajectory_id="episode-poisoned")
    store.put(poisoned.changed(invalid=("zero_rows",)))
    lost = make_upload("chatcmpl-lost", seed=31, trajectory_id="episode-0", engine_id="engine-7f3a")
    store.post(lost.drop_frame("queue_full"))
