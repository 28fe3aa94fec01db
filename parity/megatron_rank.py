"""One rank that scores packed rows; `rank_process` is its process.

A process of its own, so that what Megatron-Core keeps for a process ends with it. The
folder holds `job.json` and `rows.npz`; the rank writes `PASS-RANK.npz` for each pass and
`stages-RANK.json`, the times.
"""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from routereplay.parity.executed import executed_experts
from routereplay.parity.hf_config import read_hf_config
from routereplay.parity.hf_to_megatron import load_hf_checkpoint
from routereplay.parity.megatron_cpu import megatron_on_cpu
from routereplay.parity.megatron_job import Job, Pass, load_rows
from routereplay.parity.packed_rows import PackedRow
from routereplay.parity.rollout import TOP
from routereplay.parity.scoring import PackedScores, packed_inputs, score_logits
from routereplay.parity.stages import Stages
from routereplay.patches.megatron import RouterReplay, enable_router_replay


def main(folder: Path, rank: int, stages: Stages) -> None:
    """Score every pass of the job that lies in `folder`."""
    job = Job.load(folder)
    with _groups(job, folder, rank) as device:
        stages.reach("groups open")
        model = load_hf_checkpoint(
            job.checkpoint,
            dtype=getattr(torch, job.dtype),
            **job.sizes(),
            pipeline_dtype=getattr(torch, job.dtype),
            batch_p2p_comm=False,
        ).to(device)
        stages.reach("weights loaded")
        rows = load_rows(folder)
        routed = rows[0].routes is not None
        replay = enable_router_replay(model, canary_every=job.canary_every) if routed else None
        scorer = _Scorer(job, model, replay, device)
        for one in job.passes:
            np.savez(folder / f"{one.name}-{rank}.npz", **scorer.run(one, rows))  # type: ignore[arg-type]
            stages.reach(one.name)
        dist.barrier()
        stages.save(folder / f"stages-{rank}.json")


class _Scorer:
    """Runs Megatron-Core's own schedule, forward only, over the rows of this rank."""

    def __init__(
        self, job: Job, model: Any, replay: RouterReplay | None, device: torch.device
    ) -> None:
        from megatron.core import parallel_state

        self._model, self._replay, self._device = model, replay, device
        self._shape = read_hf_config(Path(job.checkpoint))
        self._rank = parallel_state.get_data_parallel_rank()
        self._size = parallel_state.get_data_parallel_world_size()
        tensor_size = parallel_state.get_tensor_model_parallel_world_size()
        tensor_rank = parallel_state.get_tensor_model_parallel_rank()
        self._cut = (tensor_rank, tensor_size)
        # Every rank of a tensor-parallel group has the same scores; one writes them.
        self._writes_scores = parallel_state.is_pipeline_last_stage() and tensor_rank == 0

    def run(self, one: Pass, rows: list[PackedRow]) -> dict[str, np.ndarray]:
        """Return the scores and the executed experts of a pass, by flat token."""
        from megatron.core.pipeline_parallel import get_forward_backward_func

        mine = one.rows[self._rank :: self._size]
        # Ranks that share experts step together: who has fewer rows scores some again.
        most = -(-len(one.rows) // self._size)
        mine = (mine + one.rows)[:most]
        scored: list[PackedScores] = []
        pending = iter(mine)

        def forward_step(_iterator: Any, chunk: Any) -> Any:
            row = rows[next(pending)]
            if one.replay and self._replay and row.routes:
                self._replay.begin_microbatch(row.routes, torch.arange(row.routes.num_tokens)[None])
            tokens = torch.from_numpy(row.token_ids).to(self._device)[None]
            position_ids, mask, positions = packed_inputs(tokens, torch.from_numpy(row.cu_seqlens))

            def loss_func(logits: torch.Tensor) -> Any:
                if self._writes_scores:
                    scored.append(score_logits(logits, tokens, positions, TOP))
                return torch.zeros((), device=self._device), {}

            return chunk(tokens, position_ids, mask), loss_func

        with torch.no_grad(), self._routing(one.replay) as executed:
            get_forward_backward_func()(
                forward_step_func=forward_step,
                data_iterator=None,
                model=self._model,
                num_microbatches=len(mine),
                seq_length=len(rows[mine[0]].token_ids),
                micro_batch_size=1,
                forward_only=True,
            )
        chosen = [rows[index] for index in mine]
        return self._scores(chosen, scored) | self._experts(chosen, executed)

    @contextlib.contextmanager
    def _routing(self, replay: bool) -> Iterator[list[np.ndarray]]:
        """Yield a list that fills with the experts of each forward; a dense model has none."""
        if self._replay is None:
            yield []
            return
        layers, topk = self._shape.num_layers, self._shape.topk
        mode = self._replay.step() if replay else self._replay.bypass()
        with mode, executed_experts(self._model, layers, topk) as executed:
            yield executed

    def _scores(self, rows: list[PackedRow], scored: list[PackedScores]) -> dict[str, np.ndarray]:
        if not scored:
            return {"token": np.zeros(0, np.int64)}
        flat = [row.flat[scores.positions] for row, scores in zip(rows, scored, strict=True)]
        token = np.concatenate(flat)
        real = token >= 0
        return {
            "token": token[real],
            "logprob": np.concatenate([scores.logprobs for scores in scored])[real],
            "top_id": np.concatenate([scores.top.ids for scores in scored])[real],
            "top_logprob": np.concatenate([scores.top.logprobs for scores in scored])[real],
        }

    def _experts(self, rows: list[PackedRow], executed: list[np.ndarray]) -> dict[str, np.ndarray]:
        if self._replay is None:
            return {}
        flat = np.concatenate([self._own_rows(row.flat) for row in rows])
        experts = np.concatenate(executed)
        real = flat >= 0
        layers = [number - 1 for number in self._replay.layer_numbers]
        return {
            "row": flat[real],
            "layers": np.asarray(layers),
            "experts": experts[real][:, layers].astype(np.uint16),
        }

    def _own_rows(self, flat: np.ndarray) -> np.ndarray:
        """Return the rows that this rank's routers see: sequence parallelism cuts them."""
        rank, size = self._cut
        share = len(flat) // size
        return flat[rank * share : (rank + 1) * share]


@contextlib.contextmanager
def _groups(job: Job, folder: Path, rank: int) -> Iterator[torch.device]:
    device = torch.device("cpu") if job.device == "cpu" else torch.device("cuda", rank)
    on_cpu = device.type == "cpu"
    if on_cpu:
        torch.set_num_threads(1)
    else:
        torch.cuda.set_device(device)
    store = dist.FileStore(str(folder / "rendezvous"), job.topology.world_size)
    with megatron_on_cpu() if on_cpu else contextlib.nullcontext():
        from megatron.core import parallel_state
        from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

        dist.init_process_group(
            "gloo" if on_cpu else "nccl",
            store=store,
            rank=rank,
            world_size=job.topology.world_size,
            timeout=datetime.timedelta(seconds=job.timeout_s),
        )
        try:
            parallel_state.initialize_model_parallel(**job.topology.group_sizes())
            model_parallel_cuda_manual_seed(1)
            yield device
        finally:
            parallel_state.destroy_model_parallel()
            dist.destroy_process_group()
