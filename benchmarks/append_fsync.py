"""How many acknowledged writes a killed engine loses while an fsync is slow.

    python benchmarks/append_fsync.py [SERVER]

SERVER is redis-server or valkey-server; without it, the embedded Valkey. Needs strace,
which makes every fsync take 1.5 s.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import redis

from routereplay.sidecar.embedded_config import binary_path

WRITING_S = 4.3
SLOW_FSYNC = "inject=fdatasync,fsync:delay_enter=1500000"


def connect(path: Path) -> redis.Redis:
    """Return a client once the engine answers."""
    client = redis.Redis(unix_socket_path=str(path))
    for _ in range(100):
        try:
            client.ping()
        except (redis.ConnectionError, redis.BusyLoadingError):
            time.sleep(0.1)
        else:
            return client
    msg = "the engine did not start"
    raise RuntimeError(msg)


def lost_with(server: str, policy: str) -> tuple[int, int]:
    """Return how many writes were acknowledged, and how many a restarted engine has."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [server, "--port", "0", "--unixsocket", str(folder / "s"), "--dir", name]
        command += ["--appendonly", "yes", "--appendfsync", policy, "--save", ""]
        trace = ["strace", "-f", "-qq", "-o", os.devnull, "-e", "trace=fdatasync,fsync"]
        slow = subprocess.Popen([*trace, "-e", SLOW_FSYNC, *command], stdout=subprocess.DEVNULL)
        client = connect(folder / "s")
        acknowledged, begin = 0, time.monotonic()
        while time.monotonic() - begin < WRITING_S:
            client.set(f"key-{acknowledged}", b"v" * 1000)
            acknowledged += 1
            time.sleep(0.01)
        os.kill(client.info("server")["process_id"], signal.SIGKILL)
        slow.wait()
        again = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        kept = connect(folder / "s").dbsize()
        again.kill()
        again.wait()
    return acknowledged, kept


def main() -> None:
    """Print a row for each policy."""
    server = sys.argv[1] if len(sys.argv) > 1 else str(binary_path())
    print(f"{Path(server).name:>14}  appendfsync  acknowledged  kept  lost")
    for policy in ("everysec", "no"):
        acknowledged, kept = lost_with(server, policy)
        row = f"{policy:>11}  {acknowledged:>12}  {kept:>4}  {acknowledged - kept:>4}"
        print(f"{'':>14}  {row}")


if __name__ == "__main__":
    main()
