"""Ends the shared server, so it is the last file of all (`conftest.py`)."""

import pytest

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


def test_a_server_that_is_told_to_stop_seals_what_its_open_requests_have(api, moe_server, sink):
    # More tokens than the server can make before it ends, whoever is fast.
    streams = [
        api.events("/v1/completions", prompt="never ending", max_tokens=900) for _ in range(8)
    ]
    ids = [next(events)["id"] for events in streams]
    moe_server.stop(timeout_s=5.0)
    manifests = [sink.wait(request_id).manifest for request_id in ids]
    for events in streams:
        events.close()
    open_ones = [manifest for manifest in manifests if manifest.finish_reason == "abort"]

    assert open_ones
    assert all(manifest.completion_len < 900 for manifest in open_ones)
    assert all(manifest.complete for manifest in manifests)
