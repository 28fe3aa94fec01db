"""The designs that are compared. Each does what it can of the cases, in one process of ours."""

from __future__ import annotations

import contextlib
import io
import json
import os
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import httpx
import numpy as np
import pybase64
import redis

from route_store import data
from route_store.cases import (
    LARGE_ROWS,
    SHORT_TURN_ROWS,
    SMALL_ROWS,
    TRAJECTORIES,
    TURN_ROWS,
    TURNS,
)
from route_store.processes import family, free_port, server
from route_store.servers.raw_tcp import REQUEST, receive_into
from route_store.store import running

Cleanup = Callable[[], object]
Operation = Callable[[], Cleanup | None]
"""Does one operation; what it returns is called after the clocks were read."""

_ROWS = {"fetch": LARGE_ROWS, "small_fetch": SMALL_ROWS}
_TURN_ROWS = {"trajectory": (1, TURN_ROWS), "batch": (TRAJECTORIES, SHORT_TURN_ROWS)}


class Design:
    """A way to move routes: its operations by case, and the processes beside ours."""

    def __init__(
        self,
        name: str,
        title: str,
        server: list[int],
        operations: dict[str, Operation],
        store: Sequence[int] = (),
    ) -> None:
        self.name = name
        self.title = title
        self.operations = operations
        self.pids = {"client": [os.getpid()], "server": server, "store": list(store)}


@contextlib.contextmanager
def floor() -> Iterator[Design]:
    """Raw TCP into a buffer that is there already."""
    port = free_port()
    with server(["-m", "route_store.servers.raw_tcp", str(port)], port) as pid:
        connection = socket.create_connection(("127.0.0.1", port))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def put(rows: int) -> Operation:
            body = data.routes(rows).data.cast("B")

            def run() -> None:
                connection.sendall(REQUEST.pack(b"P", body.nbytes))
                connection.sendall(body)
                receive_into(connection, memoryview(bytearray(1)))

            return run

        def get(rows: int) -> Operation:
            buffer = np.zeros(rows * data.ROW_NBYTES, np.uint8).data

            def run() -> None:
                connection.sendall(REQUEST.pack(b"G", buffer.nbytes))
                receive_into(connection, buffer)

            return run

        operations = {
            "ingest": put(LARGE_ROWS),
            "small_ingest": put(SMALL_ROWS),
            **{name: get(rows) for name, rows in _ROWS.items()},
            **{name: get(many * TURNS * rows) for name, (many, rows) in _TURN_ROWS.items()},
        }
        yield Design("floor", "raw TCP, one buffer", [pid], operations)
        connection.close()


@contextlib.contextmanager
def vllm_json() -> Iterator[Design]:
    """Routes in vLLM's own response; a trajectory is its last response, with all rows."""
    port = free_port()
    with (
        server(["-m", "route_store.servers.vllm_json", str(port)], port) as pid,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as http,
    ):

        def get(times: int, rows: int) -> Operation:
            def run() -> None:
                for _ in range(times):
                    answer = json.loads(http.get("/generate", params={"rows": rows}).content)
                    text = answer["choices"][0]["routed_experts"]
                    np.load(io.BytesIO(pybase64.b64decode(text)), allow_pickle=False)

            return run

        operations = {
            **{name: get(1, rows) for name, rows in _ROWS.items()},
            **{name: get(many, TURNS * rows) for name, (many, rows) in _TURN_ROWS.items()},
        }
        yield Design("vllm_json", "vLLM's own: base64 .npy in JSON", [pid], operations)


@contextlib.contextmanager
def engine() -> Iterator[tuple[str, int]]:
    """Start a Valkey without persistence; yield its socket and its process id."""
    import asyncio

    from routereplay.sidecar.embedded import EmbeddedEngine

    with tempfile.TemporaryDirectory() as folder, asyncio.Runner() as runner:
        valkey = EmbeddedEngine(
            durability="memory", data_dir=Path(folder), max_memory_bytes=4 << 30
        )
        runner.run(valkey.start())
        try:
            assert valkey.pid is not None
            yield valkey.url.removeprefix("unix://"), valkey.pid
        finally:
            runner.run(valkey.stop())


@contextlib.contextmanager
def naive() -> Iterator[Design]:
    """FastAPI and redis-py as one writes them at first, httpx as the client."""
    port = free_port()
    with (
        engine() as (path, engine_pid),
        server(["-m", "route_store.servers.naive", str(port), path], port) as pid,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as http,
    ):

        def put(rows: int) -> Operation:
            body = data.routes(rows).tobytes()

            def run() -> Cleanup:
                name = data.fresh_id("n")
                http.put(f"/{name}", content=body).raise_for_status()
                return lambda: http.delete(f"/{name}")

            return run

        def get(name: str, times: int, rows: int) -> Operation:
            http.put(f"/{name}", content=data.routes(rows).tobytes()).raise_for_status()

            def run() -> None:
                for _ in range(times):
                    np.frombuffer(http.get(f"/{name}").content, np.uint8)

            return run

        operations = {
            "ingest": put(LARGE_ROWS),
            "small_ingest": put(SMALL_ROWS),
            **{name: get(name, 1, rows) for name, rows in _ROWS.items()},
            **{name: get(name, many * TURNS, rows) for name, (many, rows) in _TURN_ROWS.items()},
        }
        yield Design("naive", "FastAPI + redis-py, httpx", [pid], operations, [engine_pid])


@contextlib.contextmanager
def plain_redis() -> Iterator[Design]:
    """The trainer and the recorder speak to Valkey themselves, with redis-py."""
    with engine() as (path, pid):
        client = redis.Redis(unix_socket_path=path)

        def put(rows: int) -> Operation:
            body = data.routes(rows).tobytes()

            def run() -> Cleanup:
                name = data.fresh_id("p")
                client.set(name, body, ex=600)
                return lambda: client.unlink(name)

            return run

        def get(case: str, times: int, rows: int) -> Operation:
            names = [f"{case}-{number}" for number in range(times)]
            for name in names:
                client.set(name, data.routes(rows).tobytes())

            def run() -> None:
                client.mget(names)

            return run

        operations = {
            "ingest": put(LARGE_ROWS),
            "small_ingest": put(SMALL_ROWS),
            **{name: get(name, 1, rows) for name, rows in _ROWS.items()},
            **{name: get(name, many * TURNS, rows) for name, (many, rows) in _TURN_ROWS.items()},
        }
        yield Design("plain_redis", "redis-py, no service", [], operations, [pid])
        client.close()


@contextlib.contextmanager
def ours(durability: str) -> Iterator[Design]:
    """The recorder's framing and sender, the sidecar, the client."""
    with running(ROUTEREPLAY_DURABILITY=durability) as store:
        client = store.client

        def put(rows: int) -> Operation:
            (turn,) = data.conversation(1, rows)

            def run() -> Cleanup:
                request_id = data.fresh_id("o")
                store.put(turn, request_id)
                return lambda: client.delete_request(request_id)

            return run

        def get(case: str, rows: int) -> Operation:
            store.put(*data.conversation(1, rows), case)
            return lambda: len(client.fetch_request(case).experts) and None

        def get_trajectories(case: str, many: int, rows: int) -> Operation:
            names = [f"{case}-{number}" for number in range(many)]
            for seed, name in enumerate(names):
                for number, turn in enumerate(data.conversation(TURNS, rows, seed)):
                    store.put(turn, f"{name}-{number}", name)
            if many == 1:
                return lambda: client.fetch_trajectory(names[0]) and None
            # As the floor does: into memory that is there already, as a trainer's buffer is.
            buffer = np.zeros(many * TURNS * rows * data.ROW_NBYTES * 5 // 4, np.uint8).data
            return lambda: client.fetch_trajectories(names, out=buffer) and None

        operations = {
            "ingest": put(LARGE_ROWS),
            "small_ingest": put(SMALL_ROWS),
            **{name: get(name, rows) for name, rows in _ROWS.items()},
            **{name: get_trajectories(name, *shape) for name, shape in _TURN_ROWS.items()},
        }
        title = f"routereplay, durability {durability}"
        pids = store.pids
        yield Design(f"ours_{durability}", title, pids["server"], operations, pids["store"])


@contextlib.contextmanager
def ray_objects() -> Iterator[Design]:
    """Ray's object store of one node; needs the package ray, which is not among ours."""
    import ray

    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    me = os.getpid()

    def put(rows: int) -> Operation:
        array = data.routes(rows)
        return lambda: ray.put(array) and None

    def get(times: int, rows: int) -> Operation:
        kept = [ray.put(data.routes(rows)) for _ in range(times)]
        return lambda: ray.get(kept) and None

    operations = {
        "ingest": put(LARGE_ROWS),
        "small_ingest": put(SMALL_ROWS),
        **{name: get(1, rows) for name, rows in _ROWS.items()},
        **{name: get(many * TURNS, rows) for name, (many, rows) in _TURN_ROWS.items()},
    }
    others = [pid for pid in family(me) if pid != me]
    yield Design("ray", "Ray's object store, one node", others, operations)
    ray.shutdown()


DESIGNS: tuple[Callable[[], contextlib.AbstractContextManager[Design]], ...] = (
    floor,
    vllm_json,
    naive,
    plain_redis,
    ray_objects,
    lambda: ours("memory"),
    lambda: ours("process"),
)
