"""Train a small Qwen3-MoE on the text of this machine, for as long as it is told to.

    python benchmarks/small_moe/train.py OUT --seconds 150              # one GPU, 175 M parameters
    python benchmarks/small_moe/train.py OUT --device cpu --tiny        # its logic, anywhere

Random weights route like noise: the k-th and the next expert are a coin toss at every
token. Training spreads them, and that is what a parity figure depends on. The recipe is
kept here, the weights are not. `OUT` becomes a Hugging Face checkpoint that vLLM and
`routereplay parity` load, with `held_out.jsonl`, prompts that the model never saw.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))

from corpus import encode, read_texts, train_tokenizer


@dataclass(frozen=True)
class Size:
    """The model, its batch and its text."""

    layers: int = 16
    hidden: int = 512
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 128
    experts: int = 64
    topk: int = 4
    expert_hidden: int = 96
    vocab: int = 8192
    batch: int = 64
    length: int = 512
    text_bytes: int = 80_000_000
    tokenizer_bytes: int = 8_000_000
    peak_rate: float = 6e-4


TINY = Size(4, 64, 4, 2, 32, 16, 4, 32, 1024, 8, 128, 2_000_000, 500_000, 4e-3)


class MasterWeights:
    """AdamW on float32 copies of bfloat16 parameters."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._parameters = list(model.parameters())
        self._masters = [p.detach().float().clone() for p in self._parameters]
        self._optimizer = torch.optim.AdamW(
            [
                {"params": [m for m in self._masters if m.ndim > 1], "weight_decay": 0.1},
                {"params": [m for m in self._masters if m.ndim <= 1], "weight_decay": 0.0},
            ],
            lr=0.0,
            betas=(0.9, 0.95),
        )

    def step(self, rate: float) -> bool:
        """Clip, update and copy back; returns False, and changes nothing, if a gradient is bad.

        So the weights are finite at every moment, whatever a kernel returns.
        """
        for parameter, master in zip(self._parameters, self._masters, strict=True):
            master.grad = None if parameter.grad is None else parameter.grad.float()
            parameter.grad = None
        norm = torch.nn.utils.clip_grad_norm_(self._masters, 1.0)
        if not bool(norm.isfinite()):
            return False
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        with torch.no_grad():
            torch._foreach_copy_(self._parameters, self._masters)
        return True


def never_leave_an_expert_empty(model: Any, size: Size) -> None:
    """Give every expert a row of zeros with weight zero, so that none has no row at all.

    A grouped product leaves the gradient of an expert without rows as it finds the memory,
    and the first expert that nobody asks for ends the training in NaN.
    """
    for layer in model.model.layers:
        experts = layer.mlp.experts
        experts.forward = _with_a_row_for_all(experts.forward, size)


def _with_a_row_for_all(forward: Any, size: Size) -> Any:
    rows = -(-size.experts // size.topk)

    def forward_all(hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> Any:
        ids = torch.arange(rows * size.topk, device=index.device, dtype=index.dtype)
        extra = (ids % size.experts).view(rows, size.topk)
        output = forward(
            torch.cat([hidden, hidden.new_zeros(rows, hidden.shape[1])]),
            torch.cat([index, extra]),
            torch.cat([weights, weights.new_zeros(rows, size.topk)]),
        )
        return output[: len(hidden)]

    return forward_all


def build(size: Size, tokenizer: Any, device: torch.device) -> Any:
    """Return the model with fresh weights in bfloat16."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    config = Qwen3MoeConfig(
        vocab_size=size.vocab,
        hidden_size=size.hidden,
        intermediate_size=2 * size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        head_dim=size.head_dim,
        num_experts=size.experts,
        num_experts_per_tok=size.topk,
        moe_intermediate_size=size.expert_hidden,
        decoder_sparse_step=1,
        mlp_only_layers=[],
        norm_topk_prob=True,
        router_aux_loss_coef=0.01,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    experts = "grouped_mm" if device.type == "cuda" else "eager"
    with device:
        model = Qwen3MoeForCausalLM._from_config(
            config, attn_implementation="sdpa", experts_implementation=experts
        )
    model = model.to(torch.bfloat16)
    never_leave_an_expert_empty(model, size)
    return model


def train(model: Any, tokens: np.ndarray, size: Size, seconds: float) -> dict[str, Any]:
    """Train until the time is up; the learning rate follows the time that has passed."""
    device = next(model.parameters()).device
    row = torch.from_numpy(tokens.astype(np.int64)).to(device)
    optimizer = MasterWeights(model)
    generator = torch.Generator().manual_seed(0)
    model.train()
    begin = time.monotonic()
    steps, skipped, losses = 0, 0, []
    while (passed := time.monotonic() - begin) < seconds:
        loss = _loss(model, _batch(row, size, generator))
        loss.backward()
        warm = min((steps + 1) / 100, 1.0)
        rate = size.peak_rate * warm * (0.55 + 0.45 * math.cos(math.pi * passed / seconds))
        skipped += not optimizer.step(rate)
        steps += 1
        if steps % 50 == 0 or steps == 1:
            losses.append((steps, round(float(loss.detach()), 4)))
            print(
                f"step {steps} at {passed:.0f} s: loss {losses[-1][1]}, {skipped} skipped",
                flush=True,
            )
    return {
        "steps": steps,
        "skipped": skipped,
        "tokens": steps * size.batch * size.length,
        "losses": losses,
    }


@torch.no_grad()
def held_out_loss(model: Any, tokens: np.ndarray, size: Size) -> float:
    """Return the mean loss in nats a token on text that was held out."""
    device = next(model.parameters()).device
    row = torch.from_numpy(tokens.astype(np.int64)).to(device)
    generator = torch.Generator().manual_seed(1)
    model.eval()
    losses = [model(x, labels=x).loss for x in (_batch(row, size, generator) for _ in range(4))]
    return float(torch.stack(losses).mean())


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a checkpoint that engines of this and of earlier releases read."""
    model.config.dtype = torch.bfloat16
    model.config.output_router_logits = False
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"torch_dtype": "bfloat16"}, indent=1))


def write_prompts(texts: list[str], folder: Path) -> None:
    """Write prompts of three turns from texts that were held out, one JSON object a line."""
    lines = []
    for text in texts:
        parts = [text[start : start + 240] for start in (0, 600, 1200)]
        if all(part.strip() for part in parts):
            lines.append(json.dumps({"turns": parts}))
    (folder / "held_out.jsonl").write_text("\n".join(lines) + "\n")


def _loss(model: Any, batch: torch.Tensor) -> torch.Tensor:
    loss: torch.Tensor = model(batch, labels=batch, output_router_logits=True).loss
    return loss


def _batch(row: torch.Tensor, size: Size, generator: torch.Generator) -> torch.Tensor:
    starts = torch.randint(0, len(row) - size.length, (size.batch,), generator=generator)
    index = starts.to(row.device)[:, None] + torch.arange(size.length, device=row.device)
    return row[index]


def main() -> None:
    """Train, judge and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--tiny", action="store_true", help="sizes that a CPU trains in seconds")
    parser.add_argument("--seconds", type=float, default=150.0)
    parser.add_argument("--random", type=Path, help="also write a checkpoint of random weights")
    for name in Size.__annotations__:
        parser.add_argument(f"--{name.replace('_', '-')}", type=float if "rate" in name else int)
    args = parser.parse_args()
    given = {name: value for name in Size.__annotations__ if (value := getattr(args, name))}
    size = Size(**(vars(TINY if args.tiny else Size()) | given))
    device = torch.device(args.device)
    begin = time.monotonic()
    texts, held_out = read_texts(size.text_bytes)
    tokenizer = train_tokenizer(_cut(texts, size.tokenizer_bytes), size.vocab)
    tokens, held_out_tokens = encode(tokenizer, texts), encode(tokenizer, held_out)
    print(f"{len(tokens):,} tokens of text after {time.monotonic() - begin:.0f} s", flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    model = build(size, tokenizer, device)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters / 1e6:.1f} M parameters", flush=True)
    if args.random is not None:
        from routereplay.parity.tiny_moe import seed_weights

        fresh = {name: p.detach().clone() for name, p in model.named_parameters()}
        seed_weights(model, 0)
        args.random.mkdir(parents=True, exist_ok=True)
        write_prompts(held_out, args.random)
        save(model, tokenizer, args.random)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(fresh[name])
        print(f"random weights written to {args.random}", flush=True)
    facts = train(model, tokens, size, args.seconds)
    facts |= {
        "parameters": parameters,
        "size": vars(size),
        "text_tokens": len(tokens),
        "seconds": args.seconds,
        "held_out_loss": held_out_loss(model, held_out_tokens, size),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
    }
    if not math.isfinite(facts["held_out_loss"]):
        sys.exit(f"the model is no good: {facts}")
    save(model, tokenizer, args.out)
    write_prompts(held_out, args.out)
    (args.out / "training.json").write_text(json.dumps(facts, indent=1))
    print(json.dumps({k: v for k, v in facts.items() if k != "losses"}), flush=True)


def _cut(texts: list[str], most: int) -> list[str]:
    kept, left = [], most
    for text in texts:
        if left <= 0:
            break
        kept.append(text)
        left -= len(text)
    return kept


if __name__ == "__main__":
    main()
