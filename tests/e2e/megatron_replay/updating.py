"""One update of Megatron-Core's own optimizer, with its clipping by the norm over all ranks."""

import torch
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from torch.overrides import TorchFunctionMode

LEARNING_RATE = 1.0
CLIP_GRAD = 0.5
"""Under the norm of the tests' gradients, so that a wrong norm shows in every update."""


class _FloatsOfCuda(TorchFunctionMode):
    """Clipping asserts that gradients lie on a GPU, by the name of their type."""

    def __torch_function__(self, func, _types, args=(), kwargs=None):
        if func is torch.Tensor.type and len(args) == 1 and not kwargs:
            return "torch.cuda.FloatTensor"
        return func(*args, **(kwargs or {}))


def update(chunks, named_parameters):
    """Step once; return the norm of the gradients and, by name, what was added to each weight.

    A sum is rounded to the weight's own size, which is no difference between two runs:
    see `sharding.differences`.
    """
    before = {name: parameter.detach().clone() for name, parameter in named_parameters}
    # Plain descent: Adam's first step is the sign of a gradient, and hides its size.
    config = OptimizerConfig(
        optimizer="sgd",
        lr=LEARNING_RATE,
        sgd_momentum=0.0,
        weight_decay=0.0,
        clip_grad=CLIP_GRAD,
        params_dtype=torch.float32,
    )
    optimizer = get_megatron_optimizer(config, chunks, use_gloo_process_groups=False)
    with _FloatsOfCuda():
        _, norm, _ = optimizer.step()
    return norm, {name: p.detach() - before[name] for name, p in named_parameters}
