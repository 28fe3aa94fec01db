"""One stock vLLM server in float32 with our plugin, one store, and what an agent played on them.

Shared by the tests of this folder, which stay with one worker (tests/conftest.py).
"""

import pytest
from end_to_end.agent import STYLES, Agent
from end_to_end.batch import fetch

from routereplay.parity.store_server import RouteStore
from routereplay.parity.tiny_moe import write_tiny_moe
from routereplay.parity.vllm_server import VllmServer


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    return write_tiny_moe(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    with RouteStore(tmp_path_factory.mktemp("store") / "store.log") as running:
        yield running


@pytest.fixture(scope="session")
def server(checkpoint, store, release, tmp_path_factory):
    pytest.importorskip("vllm")
    # Tokens in, tokens out, as vime and prime-rl ask: a flag since 0.30.
    flags = ("--enable-scale-out",) if release.numbers >= (0, 30) else ()
    with VllmServer(
        checkpoint,
        dtype="float32",
        arguments=flags,
        log_path=tmp_path_factory.mktemp("vllm") / "vllm.log",
        environment={"ROUTEREPLAY_STORE_URL": store.base_url},
    ) as running:
        yield running


@pytest.fixture(scope="session")
def episodes(server, checkpoint):
    from transformers import AutoTokenizer

    agent = Agent(server.base_url, AutoTokenizer.from_pretrained(checkpoint), max_tokens=16)
    played = []
    for number, style in enumerate(STYLES):
        *_, episode = agent.play(f"episode-{number}", style)
        played.append(episode)
    return played


@pytest.fixture(scope="session")
def trajectories(store, episodes):
    return fetch(store.base_url, episodes, progress=False)
