"""Whatever happens to the store, the server serves."""

import time

import pytest

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

ROWS = "routereplay_recorder_rows_total"


def test_the_figures_are_on_the_servers_own_metrics_page(api, sink):
    captured, acked = (api.metric(ROWS, state=state) for state in ("captured", "acked"))
    sink.wait(api.complete("count me", max_tokens=3)["id"])
    time.sleep(0.5)
    taken = api.metric(ROWS, state="captured") - captured

    assert taken > 0
    assert api.metric(ROWS, state="acked") - acked == taken
    assert api.metric("routereplay_recorder_unaccounted_rows") == 0
    assert api.metric("routereplay_recorder_records_total", outcome="sealed") > 0


def test_a_store_that_is_down_costs_nothing_and_gets_everything_when_it_is_back(api, sink):
    errors = api.metric("routereplay_recorder_errors_total", kind="store")
    sink.stop()
    try:
        answers = [api.complete(f"down {i}", max_tokens=4) for i in range(5)]
        time.sleep(1.5)
        held = api.metric("routereplay_recorder_held_bytes")
        failed = api.metric("routereplay_recorder_errors_total", kind="store")
    finally:
        sink.start()

    assert [len(answer["choices"][0]["token_ids"]) for answer in answers] == [4] * 5
    assert held > 0
    assert failed > errors
    for answer in answers:
        assert sink.wait(answer["id"], timeout_s=60).manifest.complete


def test_a_dense_model_is_served_as_stock_and_nothing_is_sent(dense_server, dense_api, sink):
    before = len(sink.records)
    answer = dense_api.complete("hello", max_tokens=4)

    assert len(answer["choices"][0]["token_ids"]) == 4
    time.sleep(1.5)
    assert len(sink.records) == before
    log = dense_server.log_path.read_text()
    assert "patches applied to vllm" in log
    assert "enable_return_routed_experts is on" not in log


def test_the_log_says_once_what_is_recorded(moe_server):
    log = moe_server.log_path.read_text()

    assert log.count("enable_return_routed_experts is on for") == 1
    assert log.count("4 layers, top-4 of 16 experts, 16 bytes a token") == 1
    assert "route recorder failed" not in log
