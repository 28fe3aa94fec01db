"""A training job that is given the path of a bundle: it replays it, or says what is wrong."""

import tempfile
from pathlib import Path

import bench
import torch
from registry import SAMPLED

from routereplay.client import BundleBatch, ReplayBundle
from routereplay.patches.megatron import enable_router_replay, routed_model
from routereplay.wire.errors import RouteReplayError

SEEDS = (5, 6)


def replays_what_was_recorded(recompute):
    """Two microbatches: recorded live, saved; replayed by a job that knows the path alone."""
    recorded = [bench.record(bench.build(recompute), seed) for seed in SEEDS]
    with tempfile.TemporaryDirectory() as folder:
        path = _saved(Path(folder), [packed for _, _, packed in recorded])
        model = bench.build(recompute)
        replay = enable_router_replay(
            model, model=routed_model(SAMPLED), routereplay_bundle=str(path)
        )
        found = [_train(model, replay, index, seed) for index, seed in enumerate(SEEDS)]
    return {
        "losses_equal": [run[0] == right[0] for run, right in zip(found, recorded, strict=True)],
        "gradient_differences": [
            bench.gradient_difference(run[1], right[1])
            for run, right in zip(found, recorded, strict=True)
        ],
    }


def error_of(case):
    """Return class, code and message of what a job with a wrong bundle ends in."""
    with tempfile.TemporaryDirectory() as folder:
        path = _saved(Path(folder), [bench.random_routes(seed) for seed in SEEDS])
        model = bench.build()
        before = [router.router_replay for router in bench.routers(model)]
        try:
            _CASES[case](model, path)
        except (RouteReplayError, IndexError) as error:
            return {
                "type": type(error).__name__,
                "message": str(error),
                "untouched": [router.router_replay for router in bench.routers(model)] == before,
            }
    return None


def _torn(model, path):
    file = path / "batch-00001.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    _job(model, path)


def _flipped(model, path):
    """Only whoever reads the block finds it."""
    file = path / "batch-00000.safetensors"
    content = bytearray(file.read_bytes())
    planes = bench.random_routes(SEEDS[0]).experts.transpose(1, 0, 2).tobytes()
    content[content.index(planes) + len(planes) - 1] ^= 1
    file.write_bytes(content)
    _train(model, _job(model, path), 0, SEEDS[0])


def _another_model(_model, path):
    _job(bench.build(num_moe_experts=16), path)


def _another_config(_model, path):
    other = bench.build(num_layers=3, moe_layer_freq=[0, 1, 1])
    sampled = routed_model(SAMPLED | {"num_hidden_layers": 3})
    enable_router_replay(other, model=sampled, routereplay_bundle=path)


def _other_tokens(model, path):
    _train(model, _job(model, path), 0, SEEDS[1])


def _rows_one_early(model, path):
    """Alignment is a comparison: tokens say at which row the trainer is."""
    replay = _job(model, path)
    tokens = _tokens(SEEDS[0])
    with replay.step():
        replay.begin_bundled(0, bench.row_ids().roll(-1, 1), tokens)


CUT = slice(0, bench.LENGTH - 1)


def _fewer_tokens(model, path):
    replay = _job(model, path)
    with replay.step():
        replay.begin_bundled(0, bench.row_ids(), _tokens(SEEDS[0])[:, CUT])


def _batch_that_is_not_there(model, path):
    _train(model, _job(model, path), len(SEEDS), SEEDS[0])


def _no_bundle(model, _path):
    _train(model, enable_router_replay(model), 0, SEEDS[0])


_CASES = {
    "nothing_there": lambda model, path: _job(model, path / "absent"),
    "torn": _torn,
    "flipped": _flipped,
    "another_model": _another_model,
    "another_config": _another_config,
    "other_tokens": _other_tokens,
    "rows_one_early": _rows_one_early,
    "fewer_tokens": _fewer_tokens,
    "batch_that_is_not_there": _batch_that_is_not_there,
    "no_bundle": _no_bundle,
}


def _saved(folder, batches):
    path = folder / "step-0"
    saved = [
        BundleBatch(packed, _tokens(seed).reshape(-1).numpy())
        for packed, seed in zip(batches, SEEDS, strict=True)
    ]
    ReplayBundle.save(path, saved, model=routed_model(SAMPLED).shape)
    return path


def _job(model, path):
    return enable_router_replay(model, routereplay_bundle=path)


def _train(model, replay, index, seed):
    with replay.step():
        replay.begin_bundled(index, bench.row_ids(), _tokens(seed))
        return bench.train(model, seed)


def _tokens(seed):
    """The tokens that `bench.output` draws from its seed."""
    generator = torch.Generator().manual_seed(seed)
    shape = (2, bench.BATCH, bench.LENGTH)
    return torch.randint(0, bench.VOCAB, shape, generator=generator)[0]
