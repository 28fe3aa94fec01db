"""The real vLLM server, a real HTTP sink in its store's place, a Hugging Face reference."""

import contextlib
import importlib.metadata
import os
import socket
import threading
import time
import tomllib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import msgspec
import numpy as np
import pytest
from support.toxic_proxy import ToxicProxy

from routereplay.parity.tiny_moe import write_tiny_dense, write_tiny_moe
from routereplay.parity.vllm_server import VllmServer
from routereplay.wire.digest import digest
from routereplay.wire.frame import iter_frames
from routereplay.wire.records import Chunk, Drop, FrameResult, IngestResult, Seal

ROOT = Path(__file__).parents[3]
DENSE_LAYERS = (0,)
WITHOUT_TAP = os.environ.get("ROUTEREPLAY_TEST_WITHOUT_TAP") == "1"
PATIENCE_S = 1.0 if WITHOUT_TAP else 20.0
CROWDED = (
    *("--num-gpu-blocks-override", "40", "--max-num-batched-tokens", "64", "--max-num-seqs", "16"),
)
"""A small cache and small steps: prompts come in chunks, and requests are preempted. Requests
must have no seed: vLLM's CPU worker dies of one whose prompt comes in chunks (0.30)."""
MIDDLEWARE = ("--middleware", "routereplay.patches.vllm.headers.RouteHeaders")


class Record:
    def __init__(self, manifest, experts, token_ids):
        self.manifest = manifest
        self.experts = experts
        self.token_ids = token_ids


class Sink:
    """Decodes what the recorder sends, checks every digest, and can go away and come back."""

    def __init__(self):
        self.records = {}
        self.drops = []
        self.chunk_sizes = []
        self.posts = 0
        self.problems = []
        self._staged = {}
        self._connections = []
        self._arrived = threading.Condition()
        self._server = None
        self.port = 0
        self.start()

    def start(self):
        sink = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self):
                super().setup()
                sink._connections.append(self.connection)

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                answer = msgspec.json.encode(sink.take(body))
                self.send_response(200)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *args):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self):
        self._server.shutdown()
        self._server.server_close()
        # A connection that is kept alive would be served by its thread for ever.
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._connections.clear()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def take(self, body):
        with self._arrived:
            self.posts += 1
            results = tuple(self._frame(frame) for frame in iter_frames(body))
            self._arrived.notify_all()
        return IngestResult(results=results)

    def _frame(self, frame):
        header, payload = frame
        if isinstance(header, Chunk):
            if digest(payload) != header.digest:
                self.problems.append(f"digest of chunk {header.seq} of {header.request_id}")
            self._staged.setdefault(header.upload_id, {})[header.seq] = (header, bytes(payload))
            self.chunk_sizes.append(len(payload))
            return FrameResult(status="staged")
        if isinstance(header, Drop):
            self.drops.append(header)
            return FrameResult(status="noted")
        assert isinstance(header, Seal)
        known = self.records.get((header.manifest.request_id, header.manifest.choice))
        if known is not None and known.manifest == header.manifest:
            return FrameResult(status="replayed")
        self._seal(header, payload)
        return FrameResult(status="sealed")

    def _seal(self, header, payload):
        manifest = header.manifest
        staged = self._staged.pop(header.upload_id, {})
        chunks = [staged[seq] for seq in range(len(manifest.chunks))]
        for (chunk, _), ref in zip(chunks, manifest.chunks, strict=True):
            if (chunk.rows, chunk.digest) != (ref.rows, ref.digest):
                self.problems.append(f"chunk {chunk.seq} of {manifest.request_id} is not its ref")
        rows = b"".join(data for _, data in chunks)
        experts = np.frombuffer(rows, dtype=manifest.dtype)
        experts = experts.reshape(manifest.rows, manifest.num_layers, manifest.topk)
        if digest(payload) != manifest.token_digest:
            self.problems.append(f"token digest of {manifest.request_id}")
        key = (manifest.request_id, manifest.choice)
        if key in self.records:
            self.problems.append(f"{key} was sealed with other content")
        self.records[key] = Record(manifest, experts, np.frombuffer(payload, dtype="<i4"))

    def wait(self, request_id, choice=0, timeout_s=PATIENCE_S):
        return self.wait_for(lambda: self.records.get((request_id, choice)), timeout_s)

    def wait_drop(self, request_id, timeout_s=PATIENCE_S):
        """Return the note that a request was lost."""
        return self.wait_for(
            lambda: next((drop for drop in self.drops if drop.request_id == request_id), None),
            timeout_s,
        )

    def wait_for(self, look, timeout_s=PATIENCE_S):
        deadline = time.monotonic() + timeout_s
        with self._arrived:
            while not (found := look()):
                left = deadline - time.monotonic()
                assert left > 0, f"nothing after {timeout_s} s; sealed: {sorted(self.records)}"
                self._arrived.wait(left)
            return found


class Reference:
    """The experts that a Hugging Face float32 forward of the same weights picks."""

    def __init__(self, path):
        import torch
        from transformers import AutoModelForCausalLM

        self._model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        self._topk = self._model.config.num_experts_per_tok

    def experts(self, token_ids):
        """Return `[tokens, layers, topk]`, each row sorted; dense layers are zero."""
        import torch

        picked, hooks = {}, []
        for index, layer in enumerate(self._model.model.layers):
            gate = getattr(layer.mlp, "gate", None)
            if gate is not None:
                hooks.append(gate.register_forward_hook(self._note(picked, index)))
        with torch.no_grad():
            self._model(torch.tensor([list(map(int, token_ids))]))
        for hook in hooks:
            hook.remove()
        layers = len(self._model.model.layers)
        planes = [picked.get(i, np.zeros((len(token_ids), self._topk), int)) for i in range(layers)]
        return np.stack(planes, axis=1)

    def _note(self, picked, index):
        def hook(gate, inputs, _):
            hidden = inputs[0].reshape(-1, inputs[0].shape[-1]).float()
            logits = hidden @ gate.weight.float().T
            picked[index] = np.sort(logits.topk(self._topk, -1).indices.numpy(), -1)

        return hook


class Api:
    """A plain HTTP client of the server."""

    def __init__(self, server):
        self._server = server
        self.http = httpx.Client(base_url=server.base_url, trust_env=False, timeout=120.0)
        self.model = server.served_name
        self.server_pid = server.pid

    def fresh(self):
        """Return another client, on a connection of its own."""
        return Api(self._server)

    def close(self):
        self.http.close()

    def post(self, path, headers=None, **body):
        body = {"model": self.model, "temperature": 0, "ignore_eos": True} | body
        response = self.http.post(path, json=body, headers=headers or {})
        assert response.status_code == 200, response.text
        return response.json()

    def complete(self, prompt, headers=None, **body):
        body = {"prompt": prompt, "max_tokens": 8, "return_token_ids": True} | body
        return self.post("/v1/completions", headers, **body)

    def chat(self, text, headers=None, **body):
        messages = [{"role": "user", "content": text}]
        body = {"messages": messages, "max_tokens": 8, "return_token_ids": True} | body
        return self.post("/v1/chat/completions", headers, **body)

    def events(self, path, **body):
        body = {"model": self.model, "temperature": 0, "ignore_eos": True, "stream": True} | body
        with self.http.stream("POST", path, json=body) as response:
            for line in response.iter_lines():
                if line.startswith("data: {"):
                    yield msgspec.json.decode(line[6:])

    def metric(self, name, **labels):
        """Return the sum of a metric's samples that carry these labels."""
        total = 0.0
        for line in self.http.get("/metrics").text.splitlines():
            if line.startswith(name) and all(f'{k}="{v}"' in line for k, v in labels.items()):
                total += float(line.rsplit(" ", 1)[1])
        return total


def pytest_collection_modifyitems(items):
    """Let the file that ends the shared server come last."""
    items.sort(key=lambda item: item.path == Path(__file__).with_name("test_shutdown.py"))


@pytest.fixture(scope="session")
def plugin_path(tmp_path_factory):
    """Where a server process finds the package and its entry point, installed or not."""
    paths = [str(ROOT / ".editable")]
    installed = importlib.metadata.entry_points(group="vllm.general_plugins", name="routereplay")
    if not installed:
        info = tmp_path_factory.mktemp("dist") / "routereplay-0.dist-info"
        info.mkdir()
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        points = project["entry-points"]["vllm.general_plugins"]
        lines = [f"{name} = {value}" for name, value in points.items()]
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: routereplay\nVersion: 0\n")
        (info / "entry_points.txt").write_text("\n".join(["[vllm.general_plugins]", *lines, ""]))
        paths.append(str(info.parent))
    return os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])


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
