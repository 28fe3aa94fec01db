"""The parallel layouts that are tested, as data: no torch, so that the tests read it too."""

from dataclasses import dataclass, field
from typing import Any

MICROBATCHES = 4
MOE_LAYERS = (2, 3, 4)
"""1-based."""

# Without a size of their own, experts are cut like everything else.
_TP2 = {"tensor_model_parallel_size": 2, "expert_tensor_parallel_size": 1}
_PP2 = {"pipeline_model_parallel_size": 2}
_EP2 = {"expert_model_parallel_size": 2}
_ETP2 = {"expert_tensor_parallel_size": 2}
_CP2 = {"context_parallel_size": 2}


def _interleaved(stages):
    return _PP2 | {"virtual_pipeline_model_parallel_size": stages}


@dataclass(frozen=True)
class Layout:
    """How ranks divide a model and its microbatches."""

    sizes: dict[str, Any]
    """Arguments of `initialize_model_parallel`, and fields of the configuration."""
    layers: tuple[tuple[int, ...], ...]
    """1-based MoE layers of each rank."""
    config: dict[str, Any] = field(default_factory=dict)
    packed: bool = False
    """Microbatches are one packed row (THD) with padded slots."""
    context: str = "zigzag"
    """How the trainer cuts for context parallelism: zigzag or contiguous."""
    scores_only: bool = False
    """Megatron-Core itself refuses to train it; a log-prob pass in eval mode runs."""
    mistake: str | None = None
    """What the trainer does wrong with its row ids, on purpose: `mistakes.py`."""
    fault: str | None = None
    """What goes wrong between backward and update, on purpose: `faults.py`."""

    def size(self, name):
        return self.sizes.get(name) or 1

    @property
    def bitwise(self):
        """Whether it adds in the order of one process: pipelines only."""
        return "pipeline_model_parallel_size" in self.sizes and not self.sizes.keys() & {
            "tensor_model_parallel_size",
            "context_parallel_size",
            "expert_model_parallel_size",
        }


def _everywhere(sizes, **fields):
    return Layout(sizes, (MOE_LAYERS, MOE_LAYERS), **fields)


LAYOUTS = {
    "pp2": Layout(_PP2, ((2,), (3, 4))),
    "pp2-vpp2": Layout(_interleaved(2), ((3,), (2, 4))),
    "pp2-vpp2-thd": Layout(_interleaved(2), ((3,), (2, 4)), packed=True),
    "pp2-first-stage-of-one-layer": Layout(
        _PP2, ((), (2, 3, 4)), {"num_layers_in_first_pipeline_stage": 1}
    ),
    "pp2-last-stage-of-one-layer": Layout(
        _PP2, ((2, 3), (4,)), {"num_layers_in_last_pipeline_stage": 1}
    ),
    "pp2-layout": Layout(
        _interleaved(2), ((3,), (2, 4)), {"pipeline_model_parallel_layout": "Et|t|t|tL"}
    ),
    "pp2-layout-with-a-stage-of-loss-only": Layout(
        _interleaved(2), ((4,), (2, 3)), {"pipeline_model_parallel_layout": "Et|tt|t|L"}
    ),
    "pp2-vpp3-with-embedding-and-loss-as-stages": Layout(
        _interleaved(3),
        ((2, 4), (3,)),
        {
            "account_for_embedding_in_pipeline_split": True,
            "account_for_loss_in_pipeline_split": True,
        },
    ),
    "tp2-without-sp": _everywhere(_TP2, scores_only=True),
    "tp2-sp": _everywhere(_TP2),
    "tp2-sp-thd": _everywhere(_TP2, packed=True),
    "tp2-sp-etp2": _everywhere(_TP2 | _ETP2),
    "tp2-sp-ep2": _everywhere(_TP2 | _EP2),
    "dp2": _everywhere({}),
    "dp2-etp2": _everywhere(_ETP2),
    "ep2-alltoall": _everywhere(_EP2),
    "ep2-allgather": _everywhere(_EP2, config={"moe_token_dispatcher_type": "allgather"}),
    "ep2-thd": _everywhere(_EP2, packed=True),
    "cp2-zigzag": _everywhere(_CP2),
    "cp2-contiguous": _everywhere(_CP2, context="contiguous"),
    "cp2-zigzag-thd": _everywhere(_CP2, packed=True),
    "cp2-contiguous-thd": _everywhere(_CP2, packed=True, context="contiguous"),
}

COMBINED = {
    "tp2-sp-cp2-thd": Layout(_TP2 | _CP2, (MOE_LAYERS,) * 4, packed=True),
    "tp2-sp-pp2-vpp2-thd": Layout(
        _TP2 | _interleaved(2), ((3,), (3,), (2, 4), (2, 4)), packed=True
    ),
    "cp2-ep2-pp2-vpp2-thd": Layout(
        _CP2 | _EP2 | _interleaved(2), ((3,), (3,), (2, 4), (2, 4)), packed=True
    ),
}
"""Of four processes."""

MISTAKES = {
    "cp2-rows-of-the-other-rank": _everywhere(_CP2, mistake="other_context_rank"),
    "cp2-thd-zigzag-of-the-whole-row": _everywhere(
        _CP2, packed=True, mistake="zigzag_of_the_whole_row"
    ),
    "tp2-sp-sequence-major-rows": _everywhere(_TP2, mistake="sequence_major"),
}

FAULTS = {
    "dp2-reduction-skipped": _everywhere({}, fault="reduction_over_data_skipped"),
    "cp2-reduction-skipped": _everywhere(_CP2, fault="reduction_over_data_skipped"),
    "tp2-sp-reduction-skipped": _everywhere(_TP2, fault="reduction_over_sequence_skipped"),
    "ep2-reduction-skipped": _everywhere(_EP2, fault="reduction_over_data_skipped"),
    "dp2-scaled-by-ranks": _everywhere({}, fault="scaled_by_ranks"),
    "cp2-scaled-by-ranks": _everywhere(_CP2, fault="scaled_by_ranks"),
    "ep2-shard-dropped": _everywhere(_EP2, fault="shard_of_rank_one_dropped"),
    "tp2-sp-etp2-shard-dropped": _everywhere(_TP2 | _ETP2, fault="shard_of_rank_one_dropped"),
    "dp2-microbatches-dropped": _everywhere({}, fault="microbatches_of_rank_one_dropped"),
    "pp2-stage-dropped": Layout(_PP2, ((2,), (3, 4)), fault="last_stage_dropped"),
}

ONE_OF_EACH = ("pp2-vpp2-thd", "tp2-sp-ep2", "dp2", "ep2-alltoall", "cp2-zigzag-thd")

EVERY_CASE = (
    *(f"{name}@full" for name in LAYOUTS | MISTAKES),
    *(f"{name}@moe" for name in ONE_OF_EACH),
    "pp2-vpp2-thd@none",
    "pp2@block",
)
"""A case is `LAYOUT@RECOMPUTE[@SOURCE]`; routes come from the batch itself, from a bundle, or
from the rank's own pass for log-probs, which was recorded (R2)."""
NEWEST_CASES = (
    *(f"{name}@full" for name in FAULTS),
    *(f"{name}@full@recorded" for name in ONE_OF_EACH),
    *(f"{name}@moe@bundle" for name in ONE_OF_EACH),
)
"""With the newest release only: what they prove is in no release."""
COMBINED_CASES = tuple(f"{name}@full" for name in COMBINED)
FEW_CASES = tuple(f"{name}@full" for name in ONE_OF_EACH)
