"""Start a real vLLM OpenAI server as a child process, and end it.

The environment is the one in which the CPU build was seen to work on two cores; on a
GPU machine the same class starts the ordinary build.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from routereplay.parity.child_server import ChildServer, free_port

CPU_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # Three processes spin on two cores otherwise, and everything is six times slower.
    "OMP_NUM_THREADS": "1",
    # A compiled helper of the sampler would need a C++ compiler, and half a minute.
    "TORCH_COMPILE_DISABLE": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    # A route from this machine to the outside is neither needed nor always there.
    "VLLM_HOST_IP": "127.0.0.1",
}

_CPU_ARGUMENTS = (
    "--enforce-eager",
    "--max-model-len",
    "1024",
    "--block-size",
    "32",
    "--num-gpu-blocks-override",
    "512",
)

# The sampled token and the 20 likeliest.
_ARGUMENTS = ("--max-logprobs", "21")

SERVE = ("vllm.entrypoints.cli.main", "serve")
API_SERVER = ("vllm.entrypoints.openai.api_server", "--model")


class VllmServer(ChildServer):
    """A vLLM server on 127.0.0.1; `with VllmServer(model) as server: server.base_url`.

    Args:
        model: checkpoint folder.
        dtype: `float32`, `bfloat16`, ...
        device: `cpu` for the CPU build, as small as it gets; `cuda` for the ordinary one.
        served_name: the model's name for clients.
        environment: added to this process's environment (`ROUTEREPLAY_STORE_URL=...`).
        arguments: added to the command line.
        command: of vLLM, up to the model; a release pruned of its tools has no `vllm serve`.
        log_path: where the server's output goes.
        ready_timeout_s: how long start-up may take.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        log_path: str | Path,
        dtype: str = "float32",
        device: str = "cpu",
        served_name: str = "tiny",
        environment: Mapping[str, str] | None = None,
        arguments: Sequence[str] = (),
        command: Sequence[str] = SERVE,
        ready_timeout_s: float = 240.0,
    ) -> None:
        self.served_name = served_name
        port = free_port()
        on_cpu = device == "cpu"
        of_device = CPU_ENVIRONMENT if on_cpu else {}
        variables = {**os.environ, **of_device, **(environment or {})}
        # The second start reads what the first one compiled.
        variables.pop("PYTHONDONTWRITEBYTECODE", None)
        whole_command = [
            *(sys.executable, "-m", *command, str(model)),
            *("--host", "127.0.0.1", "--port", str(port)),
            *("--served-model-name", served_name, "--dtype", dtype),
            *(_CPU_ARGUMENTS if on_cpu else ()),
            *_ARGUMENTS,
            *arguments,
        ]
        super().__init__(
            whole_command,
            port=port,
            log_path=Path(log_path),
            environment=variables,
            ready_path="/health",
            ready_timeout_s=ready_timeout_s,
        )
