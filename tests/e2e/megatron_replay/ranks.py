"""One rank of a set of layouts, forked by `nursery.py`.

A case is `LAYOUT@RECOMPUTE[@SOURCE]`, with a layout of `layouts.py` and a recompute of
`bench.RECOMPUTE` or `none`. Each trains the same microbatches in Megatron's own schedule,
inside DDP, with its own reduction of gradients and its own optimizer, and compares outputs,
losses, gradients and updates with the reference of this process alone.
"""

import contextlib
import gc
import json

import torch
import torch.distributed as dist
from layouts import COMBINED, FAULTS, LAYOUTS, MICROBATCHES, MISTAKES

from routereplay.parity.megatron_cpu import megatron_on_cpu


class Rank:
    """One layout, built on this rank from the weights of the reference."""

    def __init__(self, layout, recompute, source, reference, bundle):
        import sharding
        from megatron.core import parallel_state

        from routereplay.patches.megatron import ReplayWatch, enable_router_replay

        self.layout = layout
        self.source = source
        self.reference = reference
        self.chunks = sharding.build_chunks(layout, None if recompute == "none" else recompute)
        sharding.load(self.chunks, reference.weights)
        self.replay = enable_router_replay(self.chunks, routereplay_bundle=bundle)
        self.context_rank = parallel_state.get_context_parallel_rank()
        data_size = parallel_state.get_data_parallel_world_size()
        self.seeds = range(parallel_state.get_data_parallel_rank(), MICROBATCHES, data_size)
        self.watch = ReplayWatch(group=_group_of_rows(layout))
        self.outputs = {}
        self._begun = {}

    def run(self, *, forward_only=False):
        """Run one step of the schedule; return the losses by seed, as this rank has them.

        A pass for log-probs is recorded.
        """
        from batches import make_batch
        from megatron.core.pipeline_parallel import get_forward_backward_func

        losses, self._begun = {}, dict.fromkeys(range(len(self.chunks)), 0)
        recorded = None if forward_only else self.replay.last_recording

        def forward_step(seeds, chunk):
            seed = next(seeds)
            batch = make_batch(seed, packed=self.layout.packed)
            self._begin(batch, seed, self.chunks.index(chunk), recorded)
            output = self._forward(batch, chunk)

            def loss_func(output):
                from reference import weighted_loss

                loss = weighted_loss(output, batch, lambda v: self._cut(batch, v))
                losses[seed], self.outputs[seed] = loss.item(), output.detach()
                if not forward_only:
                    sampled = self._cut(batch, self.reference.outputs[seed])
                    self.watch.logprobs(-output, -sampled)
                return loss, {}

            return output, loss_func

        shape = make_batch(0, packed=self.layout.packed).tokens.shape
        interleaved = len(self.chunks) > 1
        iterators = [iter(self.seeds) for _ in self.chunks]
        with self.replay.step(record=forward_only):
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

    def _begin(self, batch, seed, vp_stage, recorded):
        index, row_ids = self._begun[vp_stage], self._row_ids(batch)
        self._begun[vp_stage] += 1
        if self.source == "bundle":
            tokens = self._cut(batch, batch.tokens)
            self.replay.begin_bundled(seed, row_ids, tokens, vp_stage=vp_stage)
            return
        routes = batch.routes
        if self.source == "recorded" and recorded is not None and self._has_routers(vp_stage):
            routes = recorded.packed(index, vp_stage=vp_stage)
        self.replay.begin_microbatch(routes, row_ids, vp_stage=vp_stage)

    def _forward(self, batch, chunk):
        from reference import call_model

        return call_model(chunk, batch, lambda values: self._cut(batch, values))

    def _has_routers(self, vp_stage):
        return bool(self.replay._chunks[vp_stage].layers)

    def _row_ids(self, batch):
        if self.layout.mistake is None:
            return self._cut(batch, batch.row_ids)
        import mistakes

        return getattr(mistakes, self.layout.mistake)(batch, self)

    def _cut(self, batch, values):
        return batch.cut(values, self.layout, self.context_rank)

    def output_difference(self):
        """Return how far the losses of this rank's tokens are from the reference's."""
        from batches import make_batch

        batch = make_batch(0, packed=self.layout.packed)
        return max(
            (
                (output - self._cut(batch, self.reference.outputs[seed])).abs().max().item()
                for seed, output in self.outputs.items()
            ),
            default=0.0,
        )

    def wrongly_recorded(self):
        """Return the layers and microbatches whose recording is not what the reference executed."""
        from batches import make_batch

        wrong = []
        for vp_stage, chunk in enumerate(self.replay._chunks):
            for index, seed in enumerate(self.seeds if chunk.layers else ()):
                batch = make_batch(seed, packed=self.layout.packed)
                ids = self._row_ids(batch)
                rows = chunk._placed(ids)[0].rows
                # Of a bundle, a rank has its own rows only, in the order of its tokens.
                own_ids = torch.arange(ids.numel()).view(ids.shape)
                own_rows = chunk._placed(own_ids)[0].rows if self.source == "bundle" else rows
                packed = self.replay.last_recording.packed(index, vp_stage=vp_stage)
                for router in chunk._host.found.routers:
                    plane = packed.experts[:, router.layer_idx - packed.layer_start]
                    own = torch.from_numpy(plane.astype("int64"))[own_rows].sort(1).values
                    executed = self.reference.executed[seed][rows, router.layer_idx].sort(1).values
                    if not torch.equal(own, executed) or packed.live.any():
                        wrong.append((router.layer_number, seed))
        return wrong

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
    """Score, train, update and score again; return what the tests judge."""
    import faults
    import sharding
    from megatron.core.distributed import finalize_model_grads
    from updating import update

    if rank.layout.scores_only:
        return facts_of_scoring(rank)
    with torch.no_grad():
        scored = rank.run(forward_only=True)
    losses = rank.run()
    report = rank.replay.last_step
    numbers = rank.watch.finish(report, step=1)
    finalize = finalize_model_grads
    if rank.layout.fault is not None:
        finalize = getattr(faults, rank.layout.fault)
    finalize(rank.chunks)
    named = sharding.named_parameters(rank.chunks)
    gradients = {name: parameter.main_grad.clone() for name, parameter in named}
    facts = {
        "losses": losses,
        "numbers": numbers,
        "scored_equal": scored == losses,
        "output_difference": rank.output_difference(),
        "differences": sharding.differences(rank.chunks, gradients, rank.reference.gradients),
        "wrongly_recorded": rank.wrongly_recorded() if rank.layout.mistake is None else [],
        "layers": rank.replay.layer_numbers,
        "router_calls": report.router_calls,
        "recomputes": report.recomputes,
        "helpers_agree": rank.helpers_agree(),
    }
    norm, updates = update(rank.chunks, named)
    facts["norm"] = norm
    reference = rank.reference
    facts["updates"] = sharding.differences(
        rank.chunks, updates, reference.updates, rounded_to=reference.weights
    )
    if rank.source is not None:
        with torch.no_grad():
            again = rank.run(forward_only=True)
        facts["update_moved_losses"] = all(again[seed] != loss for seed, loss in losses.items())
    return facts


def _group_of_rows(layout):
    """Return the ranks among which the rows of all microbatches are divided."""
    from megatron.core import parallel_state

    if layout.size("tensor_model_parallel_size") > 1 and not layout.scores_only:
        return parallel_state.get_tensor_and_data_parallel_group(with_context_parallel=True)
    return parallel_state.get_data_parallel_group(with_context_parallel=True)


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
            sharding.dismantle([model])
    return [references[sharding.reference_key(layout)] for layout in layouts]


def facts_of_reference(reference):
    return {
        "reference_losses": reference.losses,
        "reference_norm": reference.norm,
        "reference_gradients": {
            name: gradient.abs().max().item() for name, gradient in reference.gradients.items()
        },
    }


def save_bundles(paths):
    """Save the microbatches of both kinds, as one process does for all ranks."""
    import bench
    from batches import make_batch

    from routereplay.client import BundleBatch, ModelShape, ReplayBundle

    model = ModelShape(bench.LAYERS, bench.TOPK, bench.EXPERTS)
    for packed, path in paths.items():
        batches = [make_batch(seed, packed=packed) for seed in range(MICROBATCHES)]
        saved = [BundleBatch(batch.routes, batch.tokens.reshape(-1).numpy()) for batch in batches]
        ReplayBundle.save(path, saved, model=model)


@contextlib.contextmanager
def model_parallel(world, sizes):
    """Open Megatron-Core's process groups of these sizes, in a world of their own.

    Megatron-Core forgets its groups and leaves them open, and every open one of gloo's has a
    thread that wakes a hundred times a second: those of all layouts would take both cores.
    """
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    dist.init_process_group("gloo", **world)
    try:
        parallel_state.initialize_model_parallel(**sizes, create_gloo_process_groups=False)
        model_parallel_cuda_manual_seed(1)
        yield
        dist.barrier()
    finally:
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


def run_case(layout, recompute, source, reference, bundle):
    """Return the facts of this rank; the model and what holds its groups are gone after."""
    import sharding
    from megatron.core import parallel_state

    rank = Rank(layout, recompute, source, reference, bundle)
    try:
        facts = facts_of(rank) | facts_of_reference(reference)
        return facts | {"context_rank": parallel_state.get_context_parallel_rank()}
    finally:
        sharding.dismantle(rank.chunks)


def main(rank, world_size, folder, cases):
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), world_size)
    parts = [case.split("@") for case in cases]
    layouts = [(LAYOUTS | COMBINED | MISTAKES | FAULTS)[name] for name, *_ in parts]
    bundles = {packed: folder / f"bundle-{packed}" for packed in (False, True)}

    def world(name):
        return {"store": dist.PrefixStore(name, store), "rank": rank, "world_size": world_size}

    with megatron_on_cpu():
        with model_parallel(world("references"), {}):
            references = references_of(layouts)
            if rank == 0 and any(source == ["bundle"] for _, _, *source in parts):
                save_bundles(bundles)
        for case, (_, recompute, *source), layout, reference in zip(
            cases, parts, layouts, references, strict=True
        ):
            source = source[0] if source else None
            bundle = bundles[layout.packed] if source == "bundle" else None
            with model_parallel(world(case), layout.sizes):
                facts = run_case(layout, recompute, source, reference, bundle)
                (folder / f"{case}-{rank}.json").write_text(json.dumps(facts))
            gc.collect()
