"""A real HTTP server in the store's place: decodes and checks what a recorder sends."""

import contextlib
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import msgspec
import numpy as np

from routereplay.wire.codec import read_rows
from routereplay.wire.digest import digest
from routereplay.wire.frame import iter_frames
from routereplay.wire.records import Chunk, Drop, FrameResult, IngestResult, Seal
from support.behaviours import WITHOUT_TAP

PATIENCE_S = 1.0 if WITHOUT_TAP else 20.0


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
        shape = (manifest.num_layers, manifest.topk, manifest.num_experts)
        experts = read_rows(rows, manifest.dtype, *shape)
        if len(experts) != manifest.rows:
            self.problems.append(f"{manifest.request_id} has {len(experts)} rows")
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
