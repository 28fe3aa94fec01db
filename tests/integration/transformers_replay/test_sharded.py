"""FSDP2 over two processes against one process without replay code on it."""

import pytest

pytest.importorskip("transformers")

import torch
import torch.distributed as dist
from integration.transformers_replay import bench
from torch import multiprocessing

from routereplay.patches.transformers import enable_router_replay

WORLD = 2


def batch(rank):
    ids = bench.tokens(seed=rank)
    return ids, bench.pack(bench.random_routes(bench.build(), seed=rank))


def rank_main(rank, port, folder, reentrant):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=WORLD
    )
    from torch.distributed.fsdp import fully_shard

    model = bench.build()
    if reentrant is not None:
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    mesh = dist.init_device_mesh("cpu", (WORLD,))
    for layer in model.get_decoder().layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    replay = enable_router_replay(model, canary_every=0)
    ids, packed = batch(rank)
    with replay.step():
        replay.begin_microbatch(packed, bench.row_ids())
        model(ids, labels=ids).loss.backward()
    gradients = {name: parameter.grad.full_tensor() for name, parameter in model.named_parameters()}
    if rank == 0:
        torch.save(gradients, folder / "gradients.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize("reentrant", [None, False])
def test_sharded_gradients_equal_the_mean_of_one_process(tmp_path, free_port, reentrant):
    model = bench.build()
    replay = enable_router_replay(model, canary_every=0)
    model.zero_grad()
    with replay.step():
        for rank in range(WORLD):
            ids, packed = batch(rank)
            replay.begin_microbatch(packed, bench.row_ids())
            (model(ids, labels=ids).loss / WORLD).backward()

    multiprocessing.spawn(rank_main, args=(free_port, tmp_path, reentrant), nprocs=WORLD, join=True)

    found = torch.load(tmp_path / "gradients.pt", weights_only=True)
    assert bench.difference(found, bench.gradients(model)) < 1e-5
