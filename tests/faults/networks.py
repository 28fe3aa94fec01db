"""A network of two: this machine, and a namespace behind a virtual cable that can be harmed."""

from __future__ import annotations

import subprocess

import pytest

HOST, GUEST = "10.231.77.1", "10.231.77.2"
_SPACE, _OURS, _THEIRS = "routereplay-faults", "rr-host", "rr-guest"


class Network:
    """`within` runs a command on the other side; it reaches this one at `HOST`."""

    within = ("ip", "netns", "exec", _SPACE)

    def __enter__(self) -> Network:
        self._remove()
        for command in (
            f"ip netns add {_SPACE}",
            f"ip link add {_OURS} type veth peer name {_THEIRS} netns {_SPACE}",
            f"ip addr add {HOST}/30 dev {_OURS}",
            f"ip link set {_OURS} up",
            f"ip -n {_SPACE} addr add {GUEST}/30 dev {_THEIRS}",
            f"ip -n {_SPACE} link set {_THEIRS} up",
            f"ip -n {_SPACE} link set lo up",
        ):
            done = subprocess.run(command.split(), capture_output=True, text=True)
            if done.returncode:
                self._remove()
                pytest.skip(f"{command}: {done.stderr.strip()}")
        return self

    def __exit__(self, *_: object) -> None:
        self._remove()

    def filter(self, rule: str) -> None:
        """Add a rule for packets that come in on the other side."""
        self._nft("add table inet rr")
        self._nft("add chain inet rr in { type filter hook input priority 0; }")
        self._nft(f"add rule inet rr in {rule}")

    def unfilter(self) -> None:
        """Let every packet in again."""
        self._nft("delete table inet rr")

    def slow(self, rate: str) -> None:
        """Bound what leaves the other side."""
        queue = f"tc -n {_SPACE} qdisc add dev {_THEIRS} root tbf rate {rate} burst 32kbit"
        subprocess.run([*queue.split(), "latency", "400ms"], check=True)

    def unslow(self) -> None:
        """Let the other side send as fast as it can."""
        subprocess.run(f"tc -n {_SPACE} qdisc del dev {_THEIRS} root".split(), check=True)

    def _nft(self, command: str) -> None:
        subprocess.run([*self.within, "nft", command], check=True)

    def _remove(self) -> None:
        subprocess.run(["ip", "netns", "del", _SPACE], capture_output=True)
        subprocess.run(["ip", "link", "del", _OURS], capture_output=True)
