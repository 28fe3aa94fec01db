"""Real servers whose routes are not real: none of them may record."""

import os

import pytest
from support.openai_api import Api
from support.plugin_path import path_of_other

from routereplay.parity.child_server import ServerFailed
from routereplay.patches.vllm.releases import AUX_OUTPUT, BYPASS_REFUSED

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

by_script = pytest.mark.skipif(
    not os.environ.get("ROUTEREPLAY_TEST_BEHAVIOURS"), reason="./scripts/compatibility runs it"
)

BLIND = """
def register():
    from vllm.model_executor.layers.fused_moe.router.base_router import BaseRouter
    BaseRouter.set_capture_fn = lambda self, capture_fn: None
"""
"""A plugin after which the engine binds its capture to nothing: rows come, all zero."""


@pytest.fixture(scope="session")
def blind_path(tmp_path_factory, plugin_path):
    return path_of_other(tmp_path_factory.mktemp("blind"), "blind", BLIND, plugin_path)


def test_a_server_that_captures_zeros_serves_and_every_request_is_lost_by_name(
    start, sink, blind_path
):
    with start(ROUTEREPLAY_CANARY="mute", PYTHONPATH=blind_path) as server:
        api = Api(server)
        answer = api.complete("nobody sees me", max_tokens=5)

        assert len(answer["choices"][0]["token_ids"]) == 5
        drop = sink.wait_for(
            lambda: next((d for d in sink.drops if d.request_id == answer["id"]), 0)
        )
        assert drop.reason == "canary_failed"
        assert (answer["id"], 0) not in sink.records
        assert api.metric("routereplay_recorder_canary", state="failed") == 1
        log = server.log_path.read_text()
    assert "every id of every row is zero" in log


@by_script
@pytest.mark.behaviour("canary stops a server whose rows are all zero")
def test_the_releases_own_silent_failure_does_not_start(start, release):
    """0.22 to 0.26: the CPU kernel is not captured. 0.31 on: neither is a compiled graph."""
    if release.numbers >= (0, 33):
        pytest.skip("Triton's interpreter cannot run a kernel of its compiled graph")
    if release.has(AUX_OUTPUT):
        server = start("--no-enforce-eager", TORCH_COMPILE_DISABLE="0")
    elif not release.has(BYPASS_REFUSED):
        server = start(VLLM_CPU_CAPTURE="0")
    else:
        pytest.skip("this CPU build has no way to capture zeros that we know of")
    with pytest.raises(ServerFailed), server:
        pass
    log = server.log_path.read_text()
    assert "CanaryFailed: vLLM's routes are not real" in log
    assert "every id of every row is zero" in log
