"""The real vLLM server, a real HTTP sink in its store's place, a Hugging Face reference."""

from pathlib import Path

import numpy as np
import pytest
from support.behaviours import WITHOUT_TAP
from support.hf_reference import Reference
from support.openai_api import Api
from support.plugin_path import path_of_plugin
from support.record_sink import Sink
from support.toxic_proxy import ToxicProxy

from routereplay.parity.tiny_moe import write_tiny_dense, write_tiny_moe
from routereplay.parity.vllm_server import VllmServer

DENSE_LAYERS = (0,)
CROWDED = (
    *("--num-gpu-blocks-override", "40", "--max-num-batched-tokens", "64", "--max-num-seqs", "16"),
)
"""A small cache and small steps: prompts come in chunks, and requests are preempted. Requests
must have no seed: vLLM's CPU worker dies of one whose prompt comes in chunks (0.30)."""
MIDDLEWARE = ("--middleware", "routereplay.patches.vllm.headers.RouteHeaders")


def pytest_collection_modifyitems(items):
    """Let the file that ends the shared server come last."""
    items.sort(key=lambda item: item.path == Path(__file__).with_name("test_shutdown.py"))


@pytest.fixture(scope="session")
def plugin_path(tmp_path_factory):
    return path_of_plugin(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="session")
def moe_path(tmp_path_factory):
    return write_tiny_moe(tmp_path_factory.mktemp("moe"), dense_layers=DENSE_LAYERS)


@pytest.fixture(scope="session")
def sink():
    with_sink = Sink()
    yield with_sink
    with_sink.stop()
    assert with_sink.problems == []


@pytest.fixture(scope="session")
def way(sink):
    """What lies between the server and the sink: harmless unless a test says otherwise."""
    with ToxicProxy(sink.port) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def start(moe_path, sink, plugin_path, tmp_path_factory):
    """`start("--flag", ...)`: a server of the tiny model that records to the sink."""

    def server(*arguments, **environment):
        variables = {"ROUTEREPLAY_STORE_URL": sink.url, "PYTHONPATH": plugin_path, **environment}
        if WITHOUT_TAP:
            variables["ROUTEREPLAY_ENABLED"] = "0"
        log_path = tmp_path_factory.mktemp("log") / "moe.log"
        return VllmServer(moe_path, log_path=log_path, environment=variables, arguments=arguments)

    return server


@pytest.fixture(scope="session")
def moe_server(start, way, release, tmp_path_factory):
    # Tokens in, tokens out is an endpoint that later releases have behind a flag.
    flags = ("--enable-scale-out",) if release.numbers >= (0, 30) else ()
    environment = {
        "ROUTEREPLAY_STORE_URL": way.url,
        "ROUTEREPLAY_SPOOL_DIR": str(tmp_path_factory.mktemp("disk") / "spool"),
        "ROUTEREPLAY_RETRY_CEILING_S": "1",
        "ROUTEREPLAY_REQUEST_TIMEOUT_S": "2",
    }
    with start(*CROWDED, *MIDDLEWARE, *flags, **environment) as server:
        yield server


@pytest.fixture(scope="session")
def api(moe_server):
    return Api(moe_server)


@pytest.fixture(scope="session")
def reference(moe_path):
    return Reference(moe_path)


@pytest.fixture(scope="session")
def dense_server(plugin_path, sink, tmp_path_factory):
    path = write_tiny_dense(tmp_path_factory.mktemp("dense"))
    environment = {"ROUTEREPLAY_STORE_URL": sink.url, "PYTHONPATH": plugin_path}
    log_path = tmp_path_factory.mktemp("log") / "dense.log"
    with VllmServer(
        path, log_path=log_path, served_name="dense", environment=environment
    ) as server:
        yield server


@pytest.fixture(scope="session")
def dense_api(dense_server):
    return Api(dense_server)


@pytest.fixture
def check(reference):
    """Check a record against the tokens that the client saw and against the reference."""

    def check_record(record, prompt_ids, completion_ids, row_start=0):
        manifest = record.manifest
        tokens = [*prompt_ids, *completion_ids]
        assert record.token_ids.tolist() == tokens
        assert (manifest.prompt_len, manifest.completion_len) == (
            len(prompt_ids),
            len(completion_ids),
        )
        assert manifest.complete
        assert manifest.row_start == row_start
        expected = reference.experts(tokens)[row_start:-1]
        assert np.array_equal(np.sort(record.experts, -1), expected)

    return check_record
