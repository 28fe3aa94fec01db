"""What every layout must equal: one process, the whole model, no recompute, no replay code.

The routers of the reference are handed their ids by `FixedRoutes`, a few lines that know
the order `[s, b]` of a router's rows and nothing else of the package.
"""

from dataclasses import dataclass

import bench
import torch
from batches import make_batch
from layouts import MICROBATCHES
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from updating import update


class FixedRoutes:
    """Stands on one router; executes `ids`, and the router's own choice where `live`."""

    def __init__(self, layer_idx):
        self.layer_idx = layer_idx

    def set(self, batch):
        shape = batch.tokens.shape
        experts = torch.from_numpy(batch.routes.experts[:, self.layer_idx].astype("int64"))
        self.ids = experts.view(*shape, -1).transpose(0, 1).reshape(len(experts), -1)
        self.live = torch.from_numpy(batch.routes.live).view(shape).t().reshape(-1, 1)

    def get_replay_topk(self, scores, topk, num_groups, group_topk, compute):
        live = compute(scores, topk, num_groups, group_topk)[1]
        ids = self.executed = torch.where(self.live, live, self.ids)
        return scores.gather(1, ids), ids


@dataclass(frozen=True)
class Reference:
    weights: dict
    losses: dict
    """By seed of the microbatch."""
    outputs: dict
    """`[B, S]` losses of the tokens, by seed."""
    executed: dict
    """`[rows, layers, topk]` experts of every row, live ones too, by seed."""
    gradients: dict
    """Of the mean over the microbatches."""
    norm: float
    """Of all gradients."""
    updates: dict
    """What one step of the optimizer adds to the weights."""


def train_reference(model, *, packed):
    """Train `model`, whole and on this process alone, on every microbatch."""
    wrapped = DistributedDataParallel(model.config, DistributedDataParallelConfig(), model)
    stands = []
    for router in bench.routers(model):
        router.router_replay = FixedRoutes(router.layer_number - 1)
        stands.append(router.router_replay)
    losses, outputs, executed = {}, {}, {}
    for seed in range(MICROBATCHES):
        batch = make_batch(seed, packed=packed)
        for stand in stands:
            stand.set(batch)
        output = call_model(wrapped, batch, lambda values: values)
        loss = weighted_loss(output, batch, lambda values: values)
        losses[seed], outputs[seed] = loss.item(), output.detach()
        executed[seed] = _by_token(batch, stands)
        (loss / MICROBATCHES).backward()
    parameters = list(model.named_parameters())
    weights = {name: p.detach().clone() for name, p in parameters}
    gradients = {name: p.main_grad.clone() for name, p in parameters}
    norm, updates = update([wrapped], parameters)
    return Reference(weights, losses, outputs, executed, gradients, norm, updates)


def _by_token(batch, stands):
    """Return `[rows, layers, topk]` from the `[s, b]` rows of each router."""
    size, length = batch.tokens.shape
    experts = torch.zeros(size * length, bench.LAYERS, bench.TOPK, dtype=torch.long)
    for stand in stands:
        by_token = stand.executed.view(length, size, -1).transpose(0, 1)
        experts[:, stand.layer_idx] = by_token.reshape(size * length, -1)
    return experts


def call_model(model, batch, cut):
    """Run one forward on this rank's part; `cut` takes `[B, S]` to `[B, s]`."""
    shape = batch.tokens.shape
    positions = torch.arange(shape[1]).expand(shape)
    mask = extra = None
    if batch.packed:
        from megatron.core.packed_seq_params import PackedSeqParams

        bounds = torch.tensor(batch.bounds, dtype=torch.int32)
        longest = int(bounds.diff().max())
        params = PackedSeqParams("thd", bounds, bounds, bounds, bounds, longest, longest)
        extra = {"packed_seq_params": params}
    else:
        mask = torch.triu(torch.ones(shape[1], shape[1], dtype=torch.bool), 1)[None, None]
    return model(cut(batch.tokens), cut(positions), mask, labels=cut(batch.labels), **(extra or {}))


def weighted_loss(output, batch, cut):
    """Return this rank's share of the mean loss over the tokens that count."""
    return (output.float() * cut(batch.weights)).sum() / batch.weights.sum()
