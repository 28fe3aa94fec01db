"""Batches to save: random distinct routes with a live and a padding row."""

from __future__ import annotations

import numpy as np

from routereplay.client import BundleBatch, ModelShape, PackedRoutes
from routereplay.wire.routes import dtype_for

MODEL = ModelShape(num_layers=5, topk=2, num_experts=16)


def random_packed(rows, model=MODEL, seed=0):
    draw = np.random.default_rng(seed)
    scores = draw.random((rows, model.num_layers, model.num_experts), np.float32)
    experts = scores.argpartition(model.topk - 1, axis=-1)[..., : model.topk]
    live, padding = np.zeros((2, rows), bool)
    live[rows // 2 : rows // 2 + 1] = True
    padding[rows - 1 :] = rows > 2
    return PackedRoutes(
        experts.astype(dtype_for(model.num_experts)), live, padding, model.num_experts
    )


def random_batch(rows, model=MODEL, seed=0, **fields):
    tokens = np.random.default_rng(seed + 1).integers(0, 150_000, rows)
    return BundleBatch(random_packed(rows, model, seed), tokens, **fields)
