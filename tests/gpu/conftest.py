"""One process of Megatron-Core on one GPU, deterministic, so that runs compare bit for bit."""

import os
import sys
from pathlib import Path

import pytest
from support.behaviours import pytest_runtest_makereport as pytest_runtest_makereport

torch = pytest.importorskip("torch")
pytest.importorskip("megatron.core")

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))


@pytest.fixture(scope="session")
def device():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    from megatron_model import one_process

    device = torch.device("cuda", 0)
    torch.use_deterministic_algorithms(True, warn_only=True)
    with one_process(device):
        yield device
    torch.use_deterministic_algorithms(False)
