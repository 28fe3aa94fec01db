"""A library to patch, a store to send to, and records to send."""

import sys
import threading
import types
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import msgspec
import numpy as np
import pytest

from routereplay.patches.vllm.identity import ClientId
from routereplay.patches.vllm.record import Ending, ModelFacts, RecordInfo
from routereplay.wire.frame import iter_frames
from routereplay.wire.records import Chunk, FrameResult, IngestResult, Seal

MODEL = ModelFacts("tiny", num_layers=4, topk=2, num_experts=16)


@pytest.fixture
def library(monkeypatch):
    """A module `hostlib` as a host library would be: inheritance, class and static methods."""
    module = types.ModuleType("hostlib")

    class Base:
        def inherited(self, value):
            return ("inherited", value)

    class Engine(Base):
        def step(self, outputs, extra=None):
            return ("step", outputs, extra)

        @classmethod
        def build(cls, config):
            return (cls.__name__, config)

        @staticmethod
        def helper(value):
            return ("helper", value)

    def top_level(value):
        return ("top", value)

    module.Base, module.Engine, module.top_level = Base, Engine, top_level
    monkeypatch.setitem(sys.modules, "hostlib", module)
    return module


class Store:
    """A real HTTP server that plays a store: `answers` says how to treat each POST."""

    def __init__(self, port=0):
        self.frames = []
        self.bodies = []
        self.headers = []
        self.answers = []
        """Callables `(handler, results) -> bool`; one is used up by each POST."""
        self._arrived = threading.Condition()
        store = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                store.take(self, body)

            def log_message(self, *args):
                pass

            def reply(self, status, body=b"{}", **headers):
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name.replace("_", "-"), value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server.server_port}"

    def take(self, handler, body):
        frames = list(iter_frames(body))
        with self._arrived:
            self.bodies.append(body)
            self.headers.append(dict(handler.headers))
            answer = self.answers.pop(0) if self.answers else None
        if answer is not None and answer(handler, frames):
            return
        with self._arrived:
            self.frames += frames
            self._arrived.notify_all()
        handler.reply(200, result_body(FrameResult(status=status_of(f.header)) for f in frames))

    def headers_of(self, kind):
        with self._arrived:
            return [frame.header for frame in self.frames if isinstance(frame.header, kind)]

    def wait_for(self, look, timeout_s=10.0):
        with self._arrived:
            assert self._arrived.wait_for(look, timeout_s), self.frames

    def wait_seals(self, count):
        self.wait_for(lambda: sum(isinstance(f.header, Seal) for f in self.frames) >= count)

    def close(self):
        self.server.shutdown()
        self.server.server_close()


def status_of(header):
    if isinstance(header, Seal):
        return "sealed"
    return "staged" if isinstance(header, Chunk) else "noted"


def result_body(results):
    return msgspec.json.encode(IngestResult(results=tuple(results)))


@pytest.fixture
def make_store():
    running = []

    def make(port=0):
        running.append(Store(port))
        return running[-1]

    yield make
    for store in running:
        store.close()


@pytest.fixture
def store(make_store):
    return make_store()


@pytest.fixture
def make_info():
    """`make_info(n)`: the n-th record of a fixed model, with a prompt of 4 tokens."""

    def make(number=0, prompt=(1, 2, 3, 4)):
        return RecordInfo(
            upload_id=f"engine.{number}",
            client=ClientId(f"cmpl-{number}", 0, (str(number),)),
            trajectory_id="episode",
            model=MODEL,
            model_name="tiny",
            prompt_token_ids=list(prompt),
            row_start=0,
            engine_id="engine",
            ordinal=number,
            started_at=1.0,
        )

    return make


@pytest.fixture
def make_rows():
    """`make_rows(count, first)`: distinct rows whose first id counts up from `first`."""

    def make(count, first=0, dtype="uint8"):
        rows = np.arange(first, first + count)[:, None, None] % MODEL.num_experts
        return np.broadcast_to(rows, (count, MODEL.num_layers, MODEL.topk)).astype(dtype)

    return make


@pytest.fixture
def ending():
    return Ending([5, 6], "length", ())
