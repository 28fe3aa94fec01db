"""vLLM's Rust front end: the binary that its CUDA wheels carry, and CPU builds do not.

    PYTHONPATH=tests ./scripts/run-python -m support.vllm_rs     fetch it, 22 MB of the wheel

It needs no GPU: it speaks HTTP to clients and messages to the engine.
"""

import importlib.metadata
import sys
from pathlib import Path

from routereplay.cli.wheels import RemoteWheel, wheel_url

_MEMBER = "vllm/vllm-rs"


def installed():
    """Return the binary of the installed vLLM's release, whether it is there or not."""
    version = importlib.metadata.version("vllm").partition("+")[0]
    return Path(sys.prefix) / "vllm-rs" / version


def fetch():
    path = installed()
    if not path.exists():
        with RemoteWheel(wheel_url("vllm", path.name)) as wheel:
            binary = wheel.read_bytes(_MEMBER)
        path.parent.mkdir(exist_ok=True)
        partial = path.with_suffix(".part")
        partial.write_bytes(binary)
        partial.chmod(0o755)
        partial.rename(path)
    return path


if __name__ == "__main__":
    sys.stdout.write(f"{fetch()}\n")
