"""Real servers that are refused; tests/e2e/recorder_vllm/test_installed_vllm.py has the fast ones.

Run by ./scripts/compatibility against several releases.
"""

import os

import pytest
from support.new_weights import IN_ITS_KERNEL, captures_in_its_kernel
from support.plugin_path import path_of_other

from routereplay.parity.child_server import ServerFailed
from routereplay.patches.vllm.releases import BYPASS_REFUSED

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(
        not os.environ.get("ROUTEREPLAY_TEST_BEHAVIOURS"), reason="./scripts/compatibility runs it"
    ),
]

UNKNOWN = """
def register():
    import vllm.model_executor.layers.fused_moe.layer  # All routers exist now.
    import vllm.model_executor.layers.fused_moe.router.base_router as routers
    routers.BaseRouter = type("BaseRouter", (), {})
"""
"""A plugin after which vLLM's capture knows no router of the model."""


@pytest.mark.behaviour("refused at start: a server with pipeline stages, before its engine")
def test_a_server_with_pipeline_stages_ends_before_it_starts_an_engine(start):
    server = start("--pipeline-parallel-size", "2")
    with pytest.raises(ServerFailed), server:
        pass
    log = server.log_path.read_text()

    assert "UnsupportedEngine: the routes of this engine cannot be recorded" in log
    assert "Way out: use tensor or expert parallelism in the engine" in log
    assert "EngineCore" not in log


@pytest.mark.behaviour("refused at start: a kernel or router that capture does not know")
def test_a_model_that_capture_does_not_know_ends_with_advice(start, release, plugin_path, tmp_path):
    if not release.has(BYPASS_REFUSED):
        pytest.skip("all zero before 0.27: the canary stops it")
    if captures_in_its_kernel(release):
        pytest.skip(IN_ITS_KERNEL)
    server = start(PYTHONPATH=path_of_other(tmp_path, "unknown", UNKNOWN, plugin_path))
    with pytest.raises(ServerFailed), server:
        pass
    log = server.log_path.read_text()

    assert "Routed-experts capture is not supported with router" in log
    assert "route recorder: the engine of tiny did not start" in log
    assert "ROUTEREPLAY_ENABLED=0 runs it without recording" in log
