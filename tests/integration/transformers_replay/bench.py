"""Small models of transformers, their batches, their recordings, their gradients."""

import contextlib

import numpy as np
import torch
import transformers

from routereplay.client.packed import PackedRoutes
from routereplay.patches.transformers import routed_model

BATCH, LENGTH, VOCAB, EXPERTS, TOPK, LAYERS = 2, 6, 64, 8, 2, 4
ROWS = BATCH * LENGTH

SMALL = {
    "num_hidden_layers": LAYERS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": VOCAB,
    "num_experts_per_tok": TOPK,
}
_MLA = {
    "n_routed_experts": EXPERTS,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "head_dim": 4,
    "num_key_value_heads": 4,
}
_LINEAR = {"linear_num_value_heads": 4, "linear_num_key_heads": 2}
MODELS = {
    "qwen2_moe": {"decoder_sparse_step": 2, "num_experts": EXPERTS},
    "qwen3_moe": {"mlp_only_layers": [0], "num_experts": EXPERTS, "norm_topk_prob": True},
    "qwen3_next": {"num_experts": EXPERTS, **_LINEAR},
    "qwen3_5_moe_text": {"num_experts": EXPERTS, **_LINEAR},
    "olmoe": {"num_experts": EXPERTS},
    "mixtral": {"num_local_experts": EXPERTS},
    "gpt_oss": {"num_local_experts": EXPERTS},
    "deepseek_v2": {**_MLA, "first_k_dense_replace": 1},
    "deepseek_v3": {**_MLA, "first_k_dense_replace": 1, "norm_topk_prob": True},
    "glm4_moe": {
        "n_routed_experts": EXPERTS,
        "first_k_dense_replace": 1,
        "n_group": 2,
        "topk_group": 1,
    },
    "minimax_m2": {"num_local_experts": EXPERTS},
}


def build(model_type="qwen3_moe", **fields):
    """The real model with seeded weights, in training mode without dropout."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        model_type, **(SMALL | MODELS.get(model_type, {}) | fields)
    )
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "norm" not in name:
                tensor.normal_(std=0.2)
        for name, tensor in model.named_buffers():
            if "correction_bias" in name:
                tensor.normal_(std=0.2)
    return model.train()


def tokens(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCAB, (BATCH, LENGTH), generator=generator)


def row_ids():
    return torch.arange(ROWS).view(BATCH, LENGTH)


@contextlib.contextmanager
def executed(model):
    """Yield a dict that fills with the expert ids `[rows, topk]` that each layer executes."""
    seen = {}
    hooks = []

    def look(layer_idx):
        def note(_experts, args, kwargs):
            ids = args[1] if len(args) > 1 else kwargs["top_k_index"]
            seen.setdefault(layer_idx, []).append(ids.detach().reshape(-1, TOPK).clone())

        return note

    for layer_idx, layer in enumerate(model.get_decoder().layers):
        for name, module in layer.named_modules():
            if name.endswith(".experts"):
                hooks.append(module.register_forward_pre_hook(look(layer_idx), with_kwargs=True))
    yield seen
    for hook in hooks:
        hook.remove()


def pack(experts, live=(), padding=()):
    """Packed routes of the batch; `live` and `padding` name rows."""
    masks = [np.isin(np.arange(ROWS), rows) for rows in (live, padding)]
    return PackedRoutes(np.ascontiguousarray(experts), *masks, EXPERTS)


def own_routes(model, ids):
    """What the model's routers choose for `ids`, as `[rows, layers, topk]` uint8."""
    with executed(model) as seen, torch.no_grad():
        model(ids)
    experts = np.zeros((ROWS, LAYERS, TOPK), np.uint8)
    for layer_idx, calls in seen.items():
        experts[:, layer_idx] = calls[0].numpy()
    return experts


def random_routes(model, seed=0):
    """Valid routes that have nothing to do with the model's own."""
    generator = np.random.default_rng(seed)
    drawn = generator.random((ROWS, LAYERS, EXPERTS)).argsort(-1)[..., :TOPK].astype(np.uint8)
    dense = routed_model(model.config).dense_layers
    drawn[:, list(dense)] = 0
    return drawn


def train(model, ids):
    """Loss, and the gradient of every parameter."""
    model.zero_grad()
    loss = model(ids, labels=ids).loss
    loss.backward()
    return loss.item(), gradients(model)


def gradients(model):
    return {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def difference(left, right):
    """Largest relative difference of two sets of gradients."""
    assert left.keys() == right.keys()
    return max(
        ((left[name] - right[name]).norm() / right[name].norm().clamp_min(1e-20)).item()
        for name in left
    )
