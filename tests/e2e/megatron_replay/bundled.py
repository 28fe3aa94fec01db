"""Routes that were recorded, saved as a bundle, and replayed from its path."""

import tempfile
from pathlib import Path

import bench
from registry import SAMPLED

from routereplay.client import BundleBatch, ReplayBundle
from routereplay.patches.megatron import enable_router_replay, routed_model


def replays_what_was_recorded(recompute):
    """Two microbatches: recorded live, saved; replayed by a model whose routers have moved."""
    sampled = routed_model(SAMPLED)
    seeds = (5, 6)
    recorded = [bench.record(bench.build(recompute), seed) for seed in seeds]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "step-0"
        batches = [BundleBatch(packed, _tokens(seed)) for (_, _, packed), seed in _zip(recorded)]
        ReplayBundle.save(path, batches, model=sampled.shape)
        return _replay(path, recompute, sampled, recorded)


def _replay(path, recompute, sampled, recorded):
    model = bench.build(recompute)
    replay = enable_router_replay(model, model=sampled)
    layers = range(min(sampled.moe_layers), max(sampled.moe_layers) + 1)
    differences, losses = [], []
    for index, ((loss, gradients, _), seed) in enumerate(_zip(recorded)):
        bundle = ReplayBundle.open(path, model=sampled.shape)
        bundle.check_tokens(index, _tokens(seed))
        packed = bundle.packed(index, layers=layers)
        found_loss, found = bench.replay_train(model, replay, packed, seed)
        losses.append(found_loss == loss)
        differences.append(bench.gradient_difference(found, gradients))
    other = ReplayBundle.open(path).packed(1, layers=layers)
    swapped = bench.replay_train(model, replay, other, seed=5)[0]
    return {
        "losses_equal": losses,
        "gradient_differences": differences,
        "layers": list(layers),
        "another_batch_differs": swapped != recorded[0][0],
    }


def _tokens(seed):
    """What stands for the batch's tokens: `bench.output` draws them from its seed."""
    return [seed] * bench.ROWS


def _zip(recorded):
    return zip(recorded, (5, 6), strict=True)
