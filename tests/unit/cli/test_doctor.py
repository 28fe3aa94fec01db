"""What the doctor says of flags, of the environment, of the disk and of a running server."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from routereplay.cli.diagnosis import _config_file
from routereplay.cli.doctor_running import check_disk, check_server
from routereplay.cli.doctor_vllm import _environment, check_flags
from routereplay.patches.vllm.releases import Release

STORE = {"ROUTEREPLAY_STORE_URL": "http://127.0.0.1:8400"}


def states(findings):
    return {found.check: found.state for found in findings}


@pytest.mark.parametrize(
    "flags",
    [
        "org/model --pipeline-parallel-size 2",
        "org/model --pipeline_parallel_size=2 --port 8000",
        "org/model -pp 2",
        """org/model --kv-transfer-config '{"kv_connector": "NixlConnector"}'""",
        "org/model --kv-transfer-config.kv_connector NixlConnector",
        "org/model --kv_transfer_config.kv_connector=MooncakeConnector --port 8000",
        "org/model -dcp 2",
    ],
)
def test_flags_that_would_break_capture_are_named(flags):
    found = list(check_flags(flags))

    assert found
    assert all(each.state == "failed" and each.do for each in found)


def test_other_flags_are_no_matter():
    (found,) = check_flags("org/model -tp 2 --enable-expert-parallel --port 8000 --enforce-eager")

    assert found.state == "ok"


def test_flags_that_cannot_be_read_are_said_to_be():
    (found,) = check_flags("org/model --kv-transfer-config {broken")

    assert found.state == "failed"
    assert "cannot be read" in found.text


def test_settings_in_a_file_are_looked_at_as_the_recorder_does(tmp_path):
    path = tmp_path / "routereplay.toml"
    path.write_text('[recorder]\nstore_url = "http://127.0.0.1:9"\nspool_dir = "/spool"\n')
    environ = {"ROUTEREPLAY_CONFIG": str(path)}

    assert list(_config_file(environ)) == []
    assert (environ["ROUTEREPLAY_STORE_URL"], environ["ROUTEREPLAY_SPOOL_DIR"]) == (
        "http://127.0.0.1:9",
        "/spool",
    )
    path.write_text("[recorder]\nnonsense = 1\n")
    assert states(_config_file(environ)) == {"ROUTEREPLAY_CONFIG": "failed"}


@pytest.mark.parametrize(
    ("variable", "value", "state"),
    [
        ("VLLM_PLUGINS", "other", "failed"),
        ("VLLM_PLUGINS", "other,routereplay", None),
        ("VLLM_USE_RUST_FRONTEND", "1", "warning"),
        ("VLLM_USE_V2_MODEL_RUNNER", "0", "failed"),
        ("ROUTEREPLAY_ENABLED", "0", "warning"),
        ("ROUTEREPLAY_STORE_URL", "", "warning"),
    ],
)
def test_variables_that_would_break_capture_are_named(variable, value, state):
    found = states(_environment({**STORE, variable: value}, Release((0, 32))))

    assert found.get(variable) == state


def test_a_setting_that_means_nothing_fails():
    found = states(_environment({**STORE, "ROUTEREPLAY_CANARY": "maybe"}, Release((0, 32))))

    assert found["settings"] == "failed"


def test_a_spool_without_room_is_warned_of(tmp_path):
    spool = {"ROUTEREPLAY_SPOOL_DIR": str(tmp_path / "not" / "there")}

    assert states(check_disk(spool | {"ROUTEREPLAY_SPOOL_BYTES": "1"})) == {"disk": "ok"}
    assert states(check_disk(spool | {"ROUTEREPLAY_SPOOL_BYTES": "1e18"})) == {"disk": "warning"}


@pytest.fixture
def server():
    """`server(text)`: the address of a vLLM whose /metrics is `text`."""
    running = []

    def serve(text):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *args):
                pass

        running.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=running[-1].serve_forever, args=(0.02,), daemon=True).start()
        return f"http://127.0.0.1:{running[-1].server_port}"

    yield serve
    for each in running:
        each.shutdown()
        each.server_close()


HEALTHY = """
# HELP routereplay_recorder_records_total Choices by how their record ended.
routereplay_recorder_records_total{outcome="sealed"} 12.0
routereplay_recorder_records_total{outcome="dropped:aborted"} 1.0
routereplay_recorder_canary{state="pending"} 0.0
routereplay_recorder_canary{state="proven"} 2.0
vllm:num_preemptions_total{engine="0"} 3.0
"""


def test_a_healthy_server_is_well(server):
    findings = states(check_server(server(HEALTHY)))

    assert findings == {"canary": "ok", "watch": "ok", "records": "ok"}


@pytest.mark.parametrize(
    ("sample", "check", "state"),
    [
        ('canary{state="failed"}', "canary", "failed"),
        ('canary{state="unproven"}', "canary", "warning"),
        ('suspect_records_total{reason="stale_rows"}', "watch", "failed"),
        ('records_total{outcome="dropped:queue_full"}', "records", "warning"),
    ],
)
def test_what_ails_a_server_is_named(server, sample, check, state):
    page = f"{HEALTHY}routereplay_recorder_{sample} 2.0\n"

    assert states(check_server(server(page)))[check] == state


def test_a_server_that_records_nothing_fails(server):
    (found,) = check_server(server('vllm:num_preemptions_total{engine="0"} 3.0\n'))

    assert found.state == "failed"
    assert "not recorded" in found.text
