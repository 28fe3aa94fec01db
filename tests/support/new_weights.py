"""New weights for a running engine, brought as trainers bring them."""

import os
import shutil

import torch
from safetensors.torch import load_file, save_file

TRAINED = """
from safetensors.torch import load_file
class Trained:
    def take_weights(self, path):
        weights, taken = load_file(path), 0
        for name, parameter in self.model_runner.get_model().named_parameters():
            if "norm" in name or "embed_tokens" in name:
                parameter.data.copy_(weights[name])
                taken += 1
        return {"taken": taken}
    def say_nothing(self):
        return {}
    def lose_hook(self):
        for module in self.model_runner.get_model().modules():
            router = getattr(module, "router", None)
            if hasattr(router, "set_capture_fn"):
                router.set_capture_fn(None)
"""
"""An extension of the worker, the way in which trainers bring new weights to an engine: here
those that a CPU build has not packed into another layout when it loaded the model."""


IN_ITS_KERNEL = "this CPU build's kernel has the hook, which is the tests' own"


def captures_in_its_kernel(release):
    """Tell whether taking a router's hook away takes nothing: `scripts/vllm-cpu-capture`."""
    return (0, 28) <= release.numbers < (0, 30)


def taking_weights(folder, path):
    """Return the flags and variables of a server whose workers take weights on command.

    Args:
        folder: to write the extension to.
        path: the server's Python path.
    """
    (folder / "trained.py").write_text(TRAINED)
    variables = {
        "VLLM_SERVER_DEV_MODE": "1",
        "PYTHONPATH": os.pathsep.join([str(folder), path]),
    }
    return ("--worker-extension-cls", "trained.Trained"), variables


def retrained(path, target):
    """Write a checkpoint with other embeddings and norms, and so with other routes everywhere."""
    shutil.copytree(path, target)
    weights = load_file(path / "model.safetensors")
    generator = torch.Generator().manual_seed(7)
    for name, tensor in weights.items():
        if "norm" in name or "embed_tokens" in name:
            noise = torch.randn(tensor.shape, generator=generator)
            weights[name] = (tensor * (1 + 0.5 * noise)).to(tensor.dtype)
    save_file(weights, target / "model.safetensors", {"format": "pt"})
    return target
