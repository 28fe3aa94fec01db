"""A small MoE model of stock Megatron-Core, its batches, its recordings, its gradients."""

import numpy as np
import torch
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.transformer.moe.router import TopKRouter
from megatron.core.transformer.transformer_config import TransformerConfig

from routereplay.client.packed import PackedRoutes

LAYERS, EXPERTS, TOPK, VOCAB = 4, 8, 2, 64
BATCH, LENGTH = 2, 12
ROWS = BATCH * LENGTH
RECOMPUTE = {
    None: {},
    "full": {
        "recompute_granularity": "full",
        "recompute_method": "uniform",
        "recompute_num_layers": 1,
    },
    "block": {
        "recompute_granularity": "full",
        "recompute_method": "block",
        "recompute_num_layers": 1,
    },
    "moe": {"recompute_granularity": "selective", "recompute_modules": ["moe"]},
}


def build(
    recompute=None,
    *,
    spec_hook=None,
    mtp_hook=None,
    stage=None,
    position_embedding="rope",
    **overrides,
):
    """Return a model with a dense layer 0 and MoE layers 1 to 3; the same weights always."""
    fields = {
        "num_layers": LAYERS,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "ffn_hidden_size": 64,
        "moe_ffn_hidden_size": 16,
        "num_moe_experts": EXPERTS,
        "moe_router_topk": TOPK,
        "moe_layer_freq": [0, 1, 1, 1],
        "moe_router_load_balancing_type": "none",
        "moe_aux_loss_coeff": 0.0,
        "moe_token_dispatcher_type": "alltoall",
        "use_cpu_initialization": True,
        "add_bias_linear": False,
        "params_dtype": torch.float32,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "normalization": "RMSNorm",
        "gated_linear_unit": True,
        "activation_func": torch.nn.functional.silu,
        "masked_softmax_fusion": False,
        "bias_dropout_fusion": False,
        "bias_activation_fusion": False,
        "gradient_accumulation_fusion": False,
        "persist_layer_norm": False,
    }
    torch.manual_seed(0)
    config = TransformerConfig(**(fields | RECOMPUTE[recompute] | overrides))
    stage = stage or {}
    spec = get_gpt_decoder_block_spec(
        config,
        use_transformer_engine=False,
        normalization="RMSNorm",
        vp_stage=stage.get("vp_stage"),
    )
    if spec_hook is not None:
        spec_hook(spec)
    model = GPTModel(
        config,
        spec,
        vocab_size=VOCAB,
        max_sequence_length=64,
        position_embedding_type=position_embedding,
        share_embeddings_and_output_weights=False,
        mtp_block_spec=None if mtp_hook is None else mtp_hook(config, spec),
        **stage,
    )
    return model.train()


def routers(model):
    return [module for module in model.decoder.modules() if isinstance(module, TopKRouter)]


def perturb_routers(model, scale=0.5):
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for router in routers(model):
            router.weight.add_(torch.randn(router.weight.shape, generator=generator) * scale)


def row_ids():
    return torch.arange(ROWS).view(BATCH, LENGTH)


def forward(model, seed=5):
    """Return the mean loss of batch `seed`."""
    return output(model, seed).float().mean()


def output(model, seed):
    """Return the losses `[b, s]` of batch `seed`, or what an earlier pipeline stage sends on."""
    generator = torch.Generator().manual_seed(seed)
    tokens, labels = torch.randint(0, VOCAB, (2, BATCH, LENGTH), generator=generator)
    positions = torch.arange(LENGTH).expand(BATCH, LENGTH)
    mask = torch.triu(torch.ones(LENGTH, LENGTH, dtype=torch.bool), 1)[None, None]
    device = next(model.parameters()).device
    tokens, positions, mask, labels = (x.to(device) for x in (tokens, positions, mask, labels))
    return model(tokens, positions, mask, labels=labels)


def gradients(model):
    """Return and clear the gradients of every parameter that has one."""
    taken = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return taken


def train(model, seed=5):
    """Run forward and backward; return the loss and all gradients."""
    model.zero_grad(set_to_none=True)
    loss = forward(model, seed)
    loss.backward()
    return loss.item(), gradients(model)


def replay_train(model, replay, packed, seed=5):
    with replay.step():
        replay.begin_microbatch(packed, row_ids())
        return train(model, seed)


def gradient_difference(left, right):
    """Return the largest absolute difference; infinite if other parameters have gradients."""
    if left.keys() != right.keys():
        return float("inf")
    return max((left[name] - right[name]).abs().max().item() for name in left)


def relative_difference(left, right):
    """Return the largest difference of a parameter's gradient over its largest entry."""
    return max(
        ((left[name] - right[name]).abs().max() / (right[name].abs().max() + 1e-12)).item()
        for name in left
    )


class Recorder:
    """Stands on a router and writes down its own choice."""

    def __init__(self):
        self.ids = None

    def get_replay_topk(self, scores, topk, num_groups=None, group_topk=None, compute=None):
        values, ids = compute(scores, topk, num_groups, group_topk)
        if self.ids is None:  # A recompute comes later and chooses the same.
            self.ids = ids.clone()
        return values, ids


def record(model, seed=5):
    """Train once on live routes; return loss, gradients and the routes as vLLM lays them out."""
    recorders = {}
    for router in routers(model):
        router.router_replay = recorders[router.layer_number - 1] = Recorder()
    loss, grads = train(model, seed)
    for router in routers(model):
        router.router_replay = None
    experts = np.zeros((ROWS, LAYERS, TOPK), np.uint8)
    for layer_idx, recorder in recorders.items():
        # The router flattens [s, b]; a row of the batch is b * LENGTH + s.
        by_sequence = recorder.ids.view(LENGTH, BATCH, TOPK).transpose(0, 1)
        experts[:, layer_idx] = by_sequence.reshape(ROWS, TOPK).numpy()
    return loss, grads, pack(experts)


def random_routes(seed):
    generator = np.random.default_rng(seed)
    experts = generator.random((ROWS, LAYERS, EXPERTS)).argsort(-1)[..., :TOPK].astype(np.uint8)
    experts[:, 0] = 0
    return pack(experts)


def pack(experts, live=None, padding=None, **fields):
    none = np.zeros(len(experts), bool)
    fields = {"num_experts": EXPERTS} | fields
    return PackedRoutes(
        experts, none if live is None else live, none if padding is None else padding, **fields
    )


class MapWatch:
    """Collects the routing map of every router call, recomputes included."""

    def __init__(self, model):
        self.maps = {router.layer_number - 1: [] for router in routers(model)}
        self._hooks = [router.register_forward_hook(self._keep) for router in routers(model)]

    def _keep(self, router, _inputs, outputs):
        self.maps[router.layer_number - 1].append(outputs[1].cpu())

    def rows_equal(self, packed, rows=slice(None)):
        """Return whether every map of every layer is exactly `packed`, at flat `rows`."""
        return all(
            torch.equal(routing_map[flat], self._expected(packed, layer_idx)[rows])
            for layer_idx, maps in self.maps.items()
            for routing_map in (self._by_sequence(m) for m in maps)
            for flat in (rows,)
        )

    def calls(self):
        return [len(maps) for maps in self.maps.values()]

    def close(self):
        for hook in self._hooks:
            hook.remove()

    @staticmethod
    def _by_sequence(routing_map):
        return routing_map.view(LENGTH, BATCH, -1).transpose(0, 1).reshape(ROWS, -1)

    @staticmethod
    def _expected(packed, layer_idx):
        ids = torch.from_numpy(packed.experts[:, layer_idx].astype(np.int64))
        return torch.zeros(ROWS, EXPERTS, dtype=torch.bool).scatter_(1, ids, True)
