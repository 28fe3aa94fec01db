"""What a parity run could have found, for the report that shows it."""

from __future__ import annotations

import dataclasses
from typing import Any

from routereplay.parity.comparison import Mismatch

HOSTILE = "</pre><script>alert(1)</script>"
COLUMN = Mismatch(4.5, 0.01, 0.9, 0.95, 0.0015, 0.0015, 0.2, 0.1, (0.1, 0.3))
DENSE = dataclasses.replace(COLUMN, rows_differ=None, choices_differ=None, layers_differ=())
NAMES = ("vLLM again", "replay off", "replay on", "Megatron again")


def moe_facts(**changes: Any) -> dict[str, Any]:
    """Return the facts of a MoE model over one topology."""
    found = {
        "checkpoint": HOSTILE,
        "model": {"model_type": HOSTILE, "layers": 3, "moe_layers": 2, "experts": 8, "topk": 2},
        "sampled_tokens": 4,
        "tokens": 9,
        "trajectories": 2,
        "columns": {name: dataclasses.asdict(COLUMN) for name in NAMES},
        "megatron_stages_s": {"1": {"imported": 1.0}},
        "notes": [],
        "ratios": {"kl_off_over_on": 6.4, "kl_on_over_engine_again": 0.76},
        "gates": {"limits": {"mean_abs_pct": 7.0, "top20_kl": 0.002}, "exceeded": []},
        "by_position": {"edges": [0, 1, 2], "replay off": [0.1, None], "replay on": [0.0, 0.1]},
        "points": {name: [[-1.0, -1.1], [-2.0, -2.0]] for name in ("replay off", "replay on")},
        "run": {"versions": {"vllm": HOSTILE}},
    }
    return found | changes


def dense_facts() -> dict[str, Any]:
    """Return the facts of a dense model."""
    return moe_facts(
        model={"model_type": "qwen3", "layers": 3, "moe_layers": 0, "experts": 0, "topk": 0},
        columns={
            name: dataclasses.asdict(DENSE) for name in ("vLLM again", "Megatron", "Megatron again")
        },
        ratios={},
        by_position={"edges": [0, 1, 2], "Megatron": [0.1, 0.2]},
        points={"Megatron": [[-1.0, -1.1], [-2.0, -2.0]]},
    )
