"""Servers that start with placeholders and are brought weights later, as a trainer does it."""

import os

import pytest
from support.new_weights import (
    IN_ITS_KERNEL,
    captures_in_its_kernel,
    retrained,
    taking_weights,
)
from support.openai_api import Api
from support.plugin_path import path_of_other

from .test_silent_failures import BLIND

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(
        not os.environ.get("ROUTEREPLAY_TEST_BEHAVIOURS"), reason="./scripts/compatibility runs it"
    ),
]


@pytest.fixture(scope="module")
def weights(moe_path, tmp_path_factory):
    return str(retrained(moe_path, tmp_path_factory.mktemp("new") / "m") / "model.safetensors")


@pytest.fixture
def placeholders(start, plugin_path, tmp_path):
    """`placeholders(path)`: a server without weights, whose workers take some on command."""

    def server(path=plugin_path):
        flags, variables = taking_weights(tmp_path, path)
        return start("--load-format", "dummy", *flags, **variables)

    return server


def canary(api):
    states = ("proven", "unproven", "failed", "pending")
    return [n for n in states if api.metric("routereplay_recorder_canary", state=n)]


@pytest.mark.behaviour("weights that come after the start")
def test_routes_are_proven_before_the_first_request_that_has_the_trainers_weights(
    placeholders, sink, weights
):
    with placeholders() as server:
        api = Api(server)
        assert canary(api) == ["unproven"]
        before = api.complete("no weights yet", max_tokens=5)
        assert sink.wait(before["id"]).manifest.complete

        api.command("/collective_rpc", method="say_nothing")
        api.complete("none yet", max_tokens=5)
        assert canary(api) == ["unproven"], "it looked, and saw placeholders"
        assert "look like placeholders still" not in server.log_path.read_text(), "known, no alarm"

        api.command("/collective_rpc", method="take_weights", args=[weights])
        assert canary(api) == ["unproven"], "nobody is asked between requests"
        after = api.complete("now there are", max_tokens=5)
        assert canary(api) == ["proven"]
        record = sink.wait(after["id"])
    rows = record.experts
    assert record.manifest.complete
    assert not record.manifest.invalid
    assert not rows[:, 0].any(), "the layer without experts"
    assert (rows[:, 1] != rows[:, 2]).any(), "layers choose otherwise"
    assert "weights have come, and the canary saw real routes" in server.log_path.read_text()


@pytest.mark.behaviour("weights that come after the start, to an engine that captures zeros")
def test_zeros_are_lost_by_name_and_served(
    placeholders, sink, release, weights, plugin_path, tmp_path
):
    if captures_in_its_kernel(release):
        pytest.skip(IN_ITS_KERNEL)
    folder = tmp_path / "blind"
    folder.mkdir()
    path = path_of_other(folder, "blind", BLIND, plugin_path)
    with placeholders(path) as server:
        api = Api(server)
        api.command("/collective_rpc", method="take_weights", args=[weights])
        answer = api.complete("nobody sees me", max_tokens=5)

        assert len(answer["choices"][0]["token_ids"]) == 5
        assert canary(api) == ["failed"]
        assert sink.wait_drop(answer["id"]).reason == "canary_failed"
        assert (answer["id"], 0) not in sink.records
    assert "routes are not real since the weights changed" in server.log_path.read_text()


@pytest.mark.behaviour("an engine that captures no more since its weights were loaded again")
def test_stale_rows_are_lost_by_name_and_served(start, sink, release, plugin_path, tmp_path):
    """What a quantized kernel does that vLLM builds anew: its hook is gone, its buffer is not."""
    if release.numbers < (0, 28):
        pytest.skip("its buffer is cleared in every step: rows would be zero, which is shown above")
    if captures_in_its_kernel(release):
        pytest.skip(IN_ITS_KERNEL)
    flags, variables = taking_weights(tmp_path, plugin_path)
    with start(*flags, **variables) as server:
        api = Api(server)
        before = api.complete("these are mine", max_tokens=20)
        assert sink.wait(before["id"]).manifest.complete
        assert canary(api) == ["proven"]

        api.command("/collective_rpc", method="lose_hook")
        answer = api.complete("those are not", max_tokens=20)
        assert len(answer["choices"][0]["token_ids"]) == 20
        assert canary(api) == ["failed"]
        assert sink.wait_drop(answer["id"]).reason == "canary_failed"
    assert "generated tokens are one and the same row" in server.log_path.read_text()
