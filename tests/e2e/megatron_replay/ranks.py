"""One rank of a set of layouts, forked by `nursery.py`.

A case is `LAYOUT@RECOMPUTE`, with a layout of `layouts.py` and a recompute of
`bench.RECOMPUTE` or `none`. Each trains the same microbatches in Megatron's own schedule,
inside DDP and with its own reduction of gradients, and compares losses and gradients with
the reference of this process alone.
"""

import contextlib
import json

import torch
import torch.distributed as dist
from layouts import COMBINED, LAYOUTS, MICROBATCHES, MISTAKES

from routereplay.parity.megatron_cpu import megatron_on_cpu


class Rank:
    """One layout, built on this rank from the weights of the reference."""

    def __init__(self, layout, recompute, reference):
        import sharding
        from megatron.core import parallel_state

        from routereplay.patches.megatron import enable_router_replay

        self.layout = layout
        self.reference = reference
        self.chunks = sharding.build_chunks(layout, None if recompute == "none" else recompute)
        sharding.load(self.chunks, reference.weights)
        self.replay = enable_router_replay(self.chunks)
        self.context_rank = parallel_state.get_context_parallel_rank()
        data_size = parallel_state.get_data_parallel_world_size()
        self.seeds = range(parallel_state.get_data_parallel_rank(), MICROBATCHES, data_size)

    def run(self, *, forward_only=False):
        """Run one step of the schedule; return the losses by seed, as this rank has them."""
        from batches import make_batch
        from megatron.core.pipeline_parallel import get_forward_backward_func

        losses = {}

        def forward_step(seeds, chunk):
            seed = next(seeds)
            batch = make_batch(seed, packed=self.layout.packed)
            output = self._forward(batch, chunk)

            def loss_func(output):
                from reference import weighted_loss

                loss = weighted_loss(output, batch, lambda v: self._cut(batch, v))
                losses[seed] = loss.item()
                return loss, {}

            return output, loss_func

        shape = make_batch(0, packed=self.layout.packed).tokens.shape
        interleaved = len(self.chunks) > 1
        iterators = [iter(self.seeds) for _ in self.chunks]
        with self.replay.step():
            get_forward_backward_func()(
                forward_step_func=forward_step,
                data_iterator=iterators if interleaved else iterators[0],
                model=self.chunks if interleaved else self.chunks[0],
                num_microbatches=len(self.seeds),
                seq_length=shape[1],
                micro_batch_size=shape[0],
                forward_only=forward_only,
            )
        return losses

    def _forward(self, batch, chunk):
        from reference import call_model

        self.replay.begin_microbatch(
            batch.routes, self._row_ids(batch), vp_stage=self.chunks.index(chunk)
        )
        return call_model(chunk, batch, lambda values: self._cut(batch, values))

    def _row_ids(self, batch):
        if self.layout.mistake is None:
            return self._cut(batch, batch.row_ids)
        import mistakes

        return getattr(mistakes, self.layout.mistake)(batch, self)

    def _cut(self, batch, values):
        return batch.cut(values, self.layout, self.context_rank)

    def helpers_agree(self):
        """Whether the package's formulas give the trainer's own row ids."""
        from batches import make_batch

        size = self.layout.size("context_parallel_size")
        if size == 1 or self.layout.context != "zigzag":
            return None
        batch = make_batch(0, packed=self.layout.packed)
        rows = batch.helper_rows(size, self.context_rank)
        return torch.equal(rows, self._cut(batch, batch.row_ids))


def facts_of(rank):
    """Score and train; return what the tests judge."""
    import sharding
    from megatron.core.distributed import finalize_model_grads

    if rank.layout.scores_only:
        return facts_of_scoring(rank)
    with torch.no_grad():
        scored = rank.run(forward_only=True)
    losses = rank.run()
    finalize_model_grads(rank.chunks)
    report = rank.replay.last_step
    return {
        "losses": losses,
        "scored_equal": scored == losses,
        "differences": sharding.gradient_differences(rank.chunks, rank.reference.gradients),
        "layers": rank.replay.layer_numbers,
        "router_calls": report.router_calls,
        "recomputes": report.recomputes,
        "helpers_agree": rank.helpers_agree(),
    }


def facts_of_scoring(rank):
    """Score in eval mode; return what Megatron-Core says to training."""
    for chunk in rank.chunks:
        chunk.eval()
    with torch.no_grad():
        losses = rank.run(forward_only=True)
    for chunk in rank.chunks:
        chunk.train()
    refusal = None
    try:
        rank.run()
    except ValueError as error:
        refusal = str(error)
    return {"losses": losses, "layers": rank.replay.layer_numbers, "refusal": refusal}


def references_of(layouts):
    """Return what each layout must equal: one reference for each attention and batch."""
    import sharding
    from reference import train_reference

    references = {}
    for layout in layouts:
        key = sharding.reference_key(layout)
        if key not in references:
            model = sharding.build_whole(layout)
            references[key] = train_reference(model, packed=layout.packed)
    return [references[sharding.reference_key(layout)] for layout in layouts]


def facts_of_reference(reference):
    return {
        "reference_losses": reference.losses,
        "reference_gradients": {
            name: gradient.abs().max().item() for name, gradient in reference.gradients.items()
        },
    }


@contextlib.contextmanager
def model_parallel(sizes):
    """Open Megatron-Core's process groups of these sizes."""
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    parallel_state.initialize_model_parallel(**sizes, create_gloo_process_groups=False)
    try:
        model_parallel_cuda_manual_seed(1)
        yield
    finally:
        parallel_state.destroy_model_parallel()


def main(rank, world_size, folder, cases):
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    named = [case.split("@") for case in cases]
    layouts = [(LAYOUTS | COMBINED | MISTAKES)[name] for name, _ in named]
    with megatron_on_cpu():
        from megatron.core import parallel_state

        with model_parallel({}):
            references = references_of(layouts)
        for (name, recompute), layout, reference in zip(named, layouts, references, strict=True):
            with model_parallel(layout.sizes):
                facts = facts_of(Rank(layout, recompute, reference))
                facts |= facts_of_reference(reference)
                facts["context_rank"] = parallel_state.get_context_parallel_rank()
                path = folder / f"{name}@{recompute}-{rank}.json"
                path.write_text(json.dumps(facts))
                dist.barrier()
    dist.destroy_process_group()
