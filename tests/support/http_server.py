"""A real HTTP server that answers with what a test's handler returns."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx

Handler = Callable[[httpx.Request], httpx.Response]


@contextlib.contextmanager
def serving(handler: Handler, silent_s: float = 1.0):
    """Yield the address of a server; `handler` may raise `ConnectError` to hang up.

    After `ReadTimeout` it says nothing for `silent_s`.
    """

    class Face(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            request = httpx.Request(
                self.command, f"http://store{self.path}", headers=dict(self.headers), content=body
            )
            try:
                response = handler(request)
            except httpx.ConnectError:
                self.close_connection = True
                return
            except httpx.ReadTimeout:
                time.sleep(silent_s)
                self.close_connection = True
                return
            self.send_response(response.status_code)
            self.send_header("Content-Length", str(len(response.content)))
            if "Retry-After" in response.headers:
                self.send_header("Retry-After", response.headers["Retry-After"])
            self.end_headers()
            self.wfile.write(response.content)

        do_GET = do_POST = do_DELETE = answer

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Face)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
