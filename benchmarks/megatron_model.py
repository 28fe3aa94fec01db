"""A Mixture-of-Experts model of stock Megatron-Core that runs without Transformer Engine.

Attention runs in PyTorch's flash kernel, where Megatron-Core's local one would keep a
square of scores, and experts multiply grouped, where SequentialMLP would leave the
device waiting for Python. Router, dispatcher, recompute and schedules are Megatron-Core's.
Both replacements make a step faster, so whatever replay costs shows the more.

Shape legend: B sequences, S tokens, T rows of a router, L layers, E experts, K topk,
D hidden, F the hidden size of an expert.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from routereplay.client.packed import PackedRoutes
from routereplay.parity.megatron_cpu import megatron_on_cpu, single_process_groups


@dataclass(frozen=True)
class Size:
    """One model and its microbatch."""

    layers: int = 8
    hidden: int = 2048
    heads: int = 16
    experts: int = 128
    topk: int = 8
    expert_hidden: int = 768
    vocab: int = 32_000
    batch: int = 8
    length: int = 4096


TINY = Size(3, 32, 4, 8, 2, 16, 64, 2, 16)

RECOMPUTE: dict[str, dict[str, Any]] = {
    "none": {},
    "selective": {"recompute_granularity": "selective", "recompute_modules": ["moe"]},
    "full": {
        "recompute_granularity": "full",
        "recompute_method": "uniform",
        "recompute_num_layers": 1,
    },
}


@contextlib.contextmanager
def one_process(device: torch.device) -> Iterator[None]:
    """Open Megatron-Core's groups for this process alone, on the GPU or without one."""
    if device.type == "cpu":
        with megatron_on_cpu(), single_process_groups():
            yield
        return
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
    with model_parallel():
        yield


@contextlib.contextmanager
def model_parallel(**sizes: int) -> Iterator[None]:
    """Divide the open process group as Megatron-Core does; close it at the end."""
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    try:
        parallel_state.initialize_model_parallel(**sizes)
        model_parallel_cuda_manual_seed(1)
        yield
    finally:
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


class FlashAttention(torch.nn.Module):
    """Causal attention on `[s, b, heads, d]`, in the place of DotProductAttention."""

    def __init__(self, **_fields: Any) -> None:
        super().__init__()

    def forward(self, query: Any, key: Any, value: Any, *_args: Any, **_fields: Any) -> Any:
        """Return `[s, b, heads * d]`."""
        query, key, value = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        out = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, enable_gqa=key.shape[1] != query.shape[1]
        )
        return out.permute(2, 0, 1, 3).flatten(2)


class GroupedExperts(torch.nn.Module):
    """Gated experts in two grouped products, in the place of SequentialMLP."""

    def __init__(self, num_local_experts: int, config: Any, **_fields: Any) -> None:
        super().__init__()
        hidden, width = config.hidden_size, config.moe_ffn_hidden_size
        self.up = self._weight(num_local_experts, hidden, 2 * width, config)
        self.down = self._weight(num_local_experts, width, hidden, config)

    def forward(self, rows_TD: Any, tokens_per_expert: Any, probs_T: Any) -> tuple[Any, None]:
        """Return the experts' output `[rows, D]` for rows that lie expert by expert."""
        counts = tokens_per_expert.to("cpu")
        up_TF = _grouped(rows_TD, self.up, counts)
        gate, linear = up_TF.chunk(2, dim=-1)
        inner = torch.nn.functional.silu(gate) * linear * probs_T.unsqueeze(-1).to(gate.dtype)
        return _grouped(inner, self.down, counts), None

    @staticmethod
    def _weight(experts: int, rows: int, columns: int, config: Any) -> torch.nn.Parameter:
        device = "cpu" if config.use_cpu_initialization else torch.cuda.current_device()
        weight = torch.empty(experts, rows, columns, dtype=config.params_dtype, device=device)
        weight.normal_(std=rows**-0.5)
        parameter = torch.nn.Parameter(weight)
        parameter.allreduce = False  # Megatron-Core's mark of an expert's weight.
        return parameter


def check_grouped_products(device: torch.device) -> None:
    """Raise unless this PyTorch multiplies grouped rows, and their gradients, rightly here."""
    generator = torch.Generator().manual_seed(0)
    fields = {"generator": generator, "dtype": torch.float32}
    rows, weight = torch.randn(40, 64, **fields), torch.randn(3, 64, 32, **fields)
    counts = torch.tensor([7, 0, 33])
    found = []
    for where, dtype in ((torch.device("cpu"), torch.float32), (device, torch.bfloat16)):
        left = rows.bfloat16().to(where, dtype).requires_grad_()
        right = weight.bfloat16().to(where, dtype).requires_grad_()
        product = _grouped(left, right, counts)
        product.square().sum().backward()
        found.append([x.detach().float().cpu() for x in (product, left.grad, right.grad)])
    for expected, got in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=0.05, atol=0.05 * expected.std().item())


def _grouped(rows: torch.Tensor, weight: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    if rows.is_cuda and rows.dtype == torch.bfloat16:
        offsets = counts.cumsum(0).to(torch.int32).to(rows.device, non_blocking=True)
        return torch._grouped_mm(rows, weight, offs=offsets)
    parts = rows.split(counts.tolist())
    return torch.cat([part @ one for part, one in zip(parts, weight.unbind(), strict=True)])


def build(
    size: Size,
    recompute: str,
    device: torch.device,
    *,
    experts: str = "grouped",
    stage: dict[str, Any] | None = None,
    norm: type | None = None,
    **overrides: Any,
) -> Any:
    """Return the model on `device`: bfloat16 on a GPU, float32 without one."""
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
    from megatron.core.models.gpt.gpt_model import GPTModel
    from megatron.core.transformer.transformer_config import TransformerConfig

    config = TransformerConfig(
        **(_fields(size, device) | RECOMPUTE[recompute] | overrides),
    )
    stage = stage or {}
    spec = get_gpt_decoder_block_spec(
        config,
        use_transformer_engine=False,
        normalization="RMSNorm",
        vp_stage=stage.get("vp_stage"),
    )
    for layer in spec.layer_specs:
        layer.submodules.self_attention.submodules.core_attention = FlashAttention
        if experts == "grouped":
            layer.submodules.mlp = _with_experts(layer.submodules.mlp)
        if norm is not None:
            layer.submodules.input_layernorm = layer.submodules.pre_mlp_layernorm = norm
    if norm is not None:
        spec.layer_norm = norm
    model = GPTModel(
        config,
        spec,
        vocab_size=size.vocab,
        max_sequence_length=size.length,
        position_embedding_type="rope",
        share_embeddings_and_output_weights=False,
        **stage,
    )
    return model.to(device).train()


def _fields(size: Size, device: torch.device) -> dict[str, Any]:
    on_cpu = device.type == "cpu"
    return {
        "num_layers": size.layers,
        "hidden_size": size.hidden,
        "num_attention_heads": size.heads,
        "num_query_groups": max(size.heads // 4, 1),
        "ffn_hidden_size": 4 * size.hidden,
        "moe_ffn_hidden_size": size.expert_hidden,
        "num_moe_experts": size.experts,
        "moe_router_topk": size.topk,
        "moe_router_dtype": "fp32",
        "moe_router_load_balancing_type": "none",
        "moe_aux_loss_coeff": 0.0,
        "moe_token_dispatcher_type": "alltoall",
        "use_cpu_initialization": on_cpu,
        "bf16": not on_cpu,
        "params_dtype": torch.float32 if on_cpu else torch.bfloat16,
        "pipeline_dtype": torch.float32 if on_cpu else torch.bfloat16,
        "add_bias_linear": False,
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


def _with_experts(mlp: Any) -> Any:
    """Return the builder of an MoE layer with our experts in it."""
    from megatron.core.transformer.moe.moe_layer import MoELayer, MoESubmodules

    if getattr(mlp, "func", None) is not MoELayer:
        msg = "grouped experts need Megatron-Core 0.19's spec; use sequential ones"
        raise RuntimeError(msg)
    return functools.partial(MoELayer, submodules=MoESubmodules(experts=GroupedExperts))


def routers(model: Any) -> list[Any]:
    """Return the model's routers in the order of their layers."""
    from megatron.core.transformer.moe.router import TopKRouter

    found = [module for module in model.decoder.modules() if isinstance(module, TopKRouter)]
    return sorted(found, key=lambda router: router.layer_number)


@dataclass(frozen=True, eq=False)
class Batch:
    """The tokens of one microbatch on the device."""

    tokens_BS: torch.Tensor
    positions_BS: torch.Tensor

    @classmethod
    def of(cls, size: Size, seed: int, device: torch.device) -> Batch:
        """Return random tokens."""
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.randint(0, size.vocab, (size.batch, size.length), generator=generator)
        positions = torch.arange(size.length).expand_as(tokens).contiguous()
        return cls(tokens.to(device), positions.to(device))

    def output(self, model: Any) -> torch.Tensor:
        """Return the losses `[b, s]`, or what an earlier pipeline stage sends on."""
        return model(self.tokens_BS, self.positions_BS, None, labels=self.tokens_BS)


class Recorder:
    """Stands on a router and writes down the first choice it makes."""

    def __init__(self) -> None:
        self.ids_TK: torch.Tensor | None = None

    def get_replay_topk(
        self, scores: Any, topk: int, num_groups: Any, group_topk: Any, compute: Any
    ) -> Any:
        """Return the router's own choice."""
        values, ids = compute(scores, topk, num_groups, group_topk)
        if self.ids_TK is None:
            self.ids_TK = ids.detach().clone()
        return values, ids


def record(model: Any, batch: Batch, size: Size) -> PackedRoutes:
    """Return the routes that `model` chooses for `batch`, as vLLM would have recorded them.

    With gradients, as a training step runs: without them attention may take another
    kernel, and a near-tie another expert.
    """
    recorders = {router.layer_number - 1: Recorder() for router in routers(model)}
    for router in routers(model):
        router.router_replay = recorders[router.layer_number - 1]
    with torch.enable_grad():
        batch.output(model)
    for router in routers(model):
        router.router_replay = None
    rows = size.batch * size.length
    experts = np.zeros((rows, size.layers, size.topk), np.uint8)
    for layer_idx, recorder in recorders.items():
        # A router flattens [s, b]; row b * S + s of the batch is token [b, s].
        by_position = recorder.ids_TK.view(size.length, size.batch, size.topk)
        experts[:, layer_idx] = by_position.transpose(0, 1).reshape(rows, -1).cpu().numpy()
    return pack(experts, size)


def pack(experts: np.ndarray, size: Size, live: np.ndarray | None = None) -> PackedRoutes:
    """Return `experts` `[rows, layers, topk]` as a batch."""
    none = np.zeros(len(experts), bool)
    return PackedRoutes(experts, none if live is None else live, none, size.experts)


def row_ids(size: Size) -> torch.Tensor:
    """Return the row ids of a batch that nobody slices."""
    return torch.arange(size.batch * size.length).view(size.batch, size.length)
