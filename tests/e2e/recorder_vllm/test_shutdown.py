"""Ends the shared server, so it is the last file of all (`conftest.py`)."""

import pytest

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


def test_a_server_that_is_told_to_stop_seals_what_its_open_requests_have(api, moe_server, sink):
    events = api.events("/v1/completions", prompt="never ending", max_tokens=900)
    first = next(events)
    next(events)
    moe_server.stop(timeout_s=5.0)
    manifest = sink.wait(first["id"]).manifest
    events.close()

    assert manifest.finish_reason == "abort"
    assert manifest.complete
    assert manifest.completion_len < 900
