"""The converted checkpoint against transformers' own model of it."""

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from megatron.core.transformer.moe.router import TopKRouter
from safetensors.torch import load_file, save_file
from support.tiny_families import fuse_experts, make_multimodal, write_tiny
from transformers import AutoModelForCausalLM, Qwen3MoeForCausalLM

from routereplay.client.packed import PackedRoutes
from routereplay.parity.errors import ConversionError
from routereplay.parity.hf_to_megatron import load_hf_checkpoint
from routereplay.parity.megatron_cpu import megatron_on_cpu
from routereplay.parity.scoring import policy_gradient_packed, score_packed
from routereplay.parity.tiny_moe import write_tiny_moe
from routereplay.patches.megatron import enable_router_replay

CU_SEQLENS = torch.tensor([0, 15, 40])
LONG = torch.randint(1, 512, (1, 70), generator=torch.Generator().manual_seed(2))
TOKENS = torch.randint(1, 512, (1, 40), generator=torch.Generator().manual_seed(1))


def _checkpoint(**fields):
    return write_tiny_moe(Path(tempfile.mkdtemp(prefix="tiny-moe-")), **fields)


def _hf(path):
    return Qwen3MoeForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def against_transformers(fields):
    path = _checkpoint(**fields)
    topk = json.loads((path / "config.json").read_text())["num_experts_per_tok"]
    with torch.no_grad():
        reference = _hf(path)(TOKENS, output_router_logits=True)
    model = load_hf_checkpoint(path)
    maps = []
    for module in model.modules():
        if isinstance(module, TopKRouter):
            module.register_forward_hook(lambda _m, _i, outputs: maps.append(outputs[1]))
    mask = torch.triu(torch.ones(40, 40, dtype=torch.bool), 1)[None, None]
    with torch.no_grad():
        logits = model(TOKENS, torch.arange(40)[None], mask)
    expected = [
        torch.zeros_like(routing_map).scatter_(1, scores.topk(topk, -1).indices, True)
        for routing_map, scores in zip(maps, reference.router_logits, strict=True)
    ]
    shutil.rmtree(path)
    return {
        "logit_difference": (logits - reference.logits).abs().max().item(),
        "moe_layers": len(maps),
        "routes_equal": all(torch.equal(*pair) for pair in zip(maps, expected, strict=True)),
    }


FORMS = {"": lambda _path: None, "fused": fuse_experts, "multimodal": make_multimodal}


def family_against_transformers(model_type, form):
    """Logits and routes of a family's tiny checkpoint, in one of the forms it exists in."""
    path = write_tiny(model_type, Path(tempfile.mkdtemp(prefix="tiny-")))
    hf = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    FORMS[form](path)
    model = load_hf_checkpoint(path)
    shutil.rmtree(path)
    routers = [module for module in model.modules() if isinstance(module, TopKRouter)]
    with torch.no_grad():
        expected = hf(LONG, output_router_logits=True) if routers else hf(LONG)
        maps = []
        for router in routers:
            router.register_forward_hook(lambda _m, _i, out: maps.append(out[1]))
        mask = torch.triu(torch.ones(70, 70, dtype=torch.bool), 1)[None, None]
        logits = model(LONG, torch.arange(70)[None], mask)
    topk = model.config.moe_router_topk
    wanted = [scores.topk(topk, -1).indices for scores in getattr(expected, "router_logits", ())]
    chosen = [torch.zeros_like(m).scatter_(1, w, True) for m, w in zip(maps, wanted, strict=True)]
    return {
        "logit_difference": (logits - expected.logits).abs().max().item(),
        "moe_layers": len(maps),
        "other_choices": sum(int((m != c).sum()) for m, c in zip(maps, chosen, strict=True)),
    }


def packed_scores():
    path = _checkpoint()
    hf, model = _hf(path), load_hf_checkpoint(path)
    shutil.rmtree(path)
    scores = score_packed(model, TOKENS, CU_SEQLENS)
    alone, tops = [], []
    for start, stop in ((0, 15), (15, 40)):
        ids = TOKENS[:, start:stop]
        with torch.no_grad():
            logprobs = torch.log_softmax(hf(ids).logits[0, :-1].float(), -1)
        alone.append(logprobs.gather(1, ids[0, 1:, None])[:, 0].numpy())
        tops.append(logprobs.topk(20).indices.numpy())
    loss, trained = policy_gradient_packed(
        model, TOKENS, CU_SEQLENS, torch.arange(40).ge(20).float()
    )
    sampled = scores.positions >= 20
    return {
        "positions": scores.positions.tolist(),
        "difference": float(np.abs(scores.logprobs - np.concatenate(alone)).max()),
        "top_equal": bool((scores.top.ids == np.concatenate(tops)).all()),
        "trained_difference": float(np.abs(trained.logprobs - scores.logprobs).max()),
        "loss_difference": abs(loss + float(scores.logprobs[sampled].mean())),
        "without_gradient": [n for n, p in model.named_parameters() if p.grad is None],
    }


def bfloat16_scores():
    path = _checkpoint()
    scores = [
        score_packed(load_hf_checkpoint(path, dtype=dtype), TOKENS, CU_SEQLENS)
        for dtype in (torch.float32, torch.bfloat16)
    ]
    shutil.rmtree(path)
    return {"difference": float(np.abs(scores[0].logprobs - scores[1].logprobs).mean())}


def replay_of_a_packed_row():
    """Own routes of a packed THD row, replayed, give its own scores."""
    path = _checkpoint()
    model = load_hf_checkpoint(path)
    shutil.rmtree(path)
    routes = np.zeros((40, 4, 4), np.uint8)

    def keep(router, _inputs, outputs):
        ids = outputs[1].nonzero()[:, 1].view(40, 4)
        routes[:, router.layer_number - 1] = ids.numpy()

    modules = [module for module in model.modules() if isinstance(module, TopKRouter)]
    hooks = [module.register_forward_hook(keep) for module in modules]
    live = score_packed(model, TOKENS, CU_SEQLENS)
    for hook in hooks:
        hook.remove()
    replay = enable_router_replay(model)
    none = np.zeros(40, bool)
    with replay.step():
        replay.begin_microbatch(PackedRoutes(routes, none, none, 16), torch.arange(40)[None])
        replayed = score_packed(model, TOKENS, CU_SEQLENS)
    return {"difference": float(np.abs(live.logprobs - replayed.logprobs).max())}


def broken_checkpoint(change):
    """Return the message with which a changed checkpoint is refused, None if it loads."""
    path = _checkpoint()
    weights = load_file(path / "model.safetensors")
    config = json.loads((path / "config.json").read_text())
    if change == "missing":
        del weights["model.layers.2.mlp.experts.3.up_proj.weight"]
    elif change == "unused":
        weights["model.layers.1.mlp.shared_expert.weight"] = torch.zeros(2)
    elif change == "shape":
        weights["model.norm.weight"] = torch.ones(65)
    elif change == "architecture":
        config["model_type"] = "gemma3_text"
    elif change == "rope":
        config["rope_parameters"]["rope_type"] = "yarn"
    elif change == "absent":
        (path / "model.safetensors").unlink()
    if change != "absent":
        save_file(weights, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(config))
    try:
        load_hf_checkpoint(path)
    except ConversionError as error:
        return str(error)
    finally:
        shutil.rmtree(path)
    return None


def shim_puts_everything_back():
    """A nested shim restores what the outer one had."""
    names = ("current_device", "Stream", "Event", "current_stream", "stream", "get_rng_state")
    before = {name: getattr(torch.cuda, name) for name in names}
    with megatron_on_cpu():
        pass
    return {"restored": all(getattr(torch.cuda, name) is old for name, old in before.items())}
