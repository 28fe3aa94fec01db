"""How real trainers hold a model: wrapped, in chunks, with multi-token prediction."""

import logging

import bench
import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.transformer.module import Float16Module

from routereplay.patches.megatron import enable_router_replay


class _Warnings(logging.Handler):
    def __init__(self):
        super().__init__(logging.WARNING)
        self.messages = []

    def emit(self, record):
        self.messages.append(record.getMessage())


def wrapped_model():
    """DDP around Float16Module around the model."""
    model = bench.build(params_dtype=torch.bfloat16, bf16=True)
    wrapped = DistributedDataParallel(
        model.config, DistributedDataParallelConfig(), Float16Module(model.config, model)
    )
    replay = enable_router_replay([wrapped])
    packed = bench.random_routes(1)
    watch = bench.MapWatch(model)
    with replay.step():
        replay.begin_microbatch(packed, bench.row_ids())
        bench.forward(wrapped).backward()
    return {"layers": replay.layer_numbers, "equal": watch.rows_equal(packed)}


def multi_token_prediction():
    """Routers outside of the decoder keep their own routing."""
    model = bench.build()
    outside = bench.routers(bench.build())[0]
    model.mtp = torch.nn.ModuleList([outside])
    replay = enable_router_replay(model)
    return {"layers": replay.layer_numbers, "outside_is_untouched": outside.router_replay is None}


def warnings_of(config):
    handler = _Warnings()
    logger = logging.getLogger("routereplay.patches.megatron")
    logger.addHandler(handler)
    try:
        enable_router_replay(bench.build(**config))
    finally:
        logger.removeHandler(handler)
    return handler.messages
