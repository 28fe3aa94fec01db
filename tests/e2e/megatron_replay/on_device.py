"""Replay with routes and row ids on a device; as a program, on CUDA, it prints facts as JSON."""

import functools
import json
import sys

import torch

from routereplay.parity.megatron_cpu import single_process_groups


def train(model, replay, packed, ids, begin):
    import bench

    with replay.step():
        begin(packed, ids)
        return bench.train(model)


def without_waiting(function, device):
    """Return `function` so that on CUDA it raises if the host waits for the device."""

    @functools.wraps(function)
    def guarded(*arguments, **fields):
        if device.type != "cuda":
            return function(*arguments, **fields)
        torch.cuda.set_sync_debug_mode("error")
        try:
            return function(*arguments, **fields)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    return guarded


def facts_of(device):
    import bench
    import numpy as np

    from routereplay.patches.megatron import enable_router_replay
    from routereplay.patches.megatron.layer import MegatronLayer
    from routereplay.patches.replay.errors import ReplayError

    if device.type == "cuda":
        MegatronLayer.get_replay_topk = without_waiting(MegatronLayer.get_replay_topk, device)
    live = np.arange(bench.ROWS) % 2 == 1
    packed = bench.random_routes(1)
    mixed = bench.pack(packed.experts, live=live)
    plain = bench.build().to(device)
    right = bench.replay_train(plain, enable_router_replay(plain), packed)
    model = bench.build("full").to(device)
    replay = enable_router_replay(model)
    begin = without_waiting(replay.begin_microbatch, device)
    ids_on_host, ids_on_device = bench.row_ids(), bench.row_ids().to(device)
    watch = bench.MapWatch(model)
    from_host = train(model, replay, packed, ids_on_host, begin)
    from_device = train(model, replay, packed, ids_on_device, begin)
    equal = watch.rows_equal(packed)
    watch.close()
    watch = bench.MapWatch(model)
    train(model, replay, mixed, ids_on_device, begin)
    mixed_equal = watch.rows_equal(packed, ~live)
    watch.close()
    twice = packed.experts.copy()
    twice[3, 2] = 5
    refused = []
    for routes, ids in ((packed, ids_on_device + 1), (bench.pack(twice), ids_on_device)):
        try:
            train(model, replay, routes, ids, replay.begin_microbatch)
        except ReplayError as error:
            refused.append(error.code)
    return {
        "maps_equal": equal,
        "mixed_equal": mixed_equal,
        "loss_difference": max(abs(run[0] - right[0]) for run in (from_host, from_device)),
        "gradient_difference": max(
            bench.relative_difference(run[1], right[1]) for run in (from_host, from_device)
        ),
        "refused": refused,
    }


def facts_on(device):
    return facts_of(torch.device(device))


def main():
    torch.set_num_threads(1)
    with single_process_groups():
        from megatron.core.transformer.moe import moe_utils

        if not hasattr(moe_utils, "te_general_gemm"):
            moe_utils.te_general_gemm = None  # 0.16 names it without Transformer Engine.
        sys.stdout.write(json.dumps(facts_on("cuda")) + "\n")


if __name__ == "__main__":
    main()
