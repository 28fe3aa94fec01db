"""Each test runs in a worker that holds one release of the real Megatron-Core.

`ROUTEREPLAY_TEST_MCORE_PATHS="0.16.1=:0.19.2=/folder"` says where the releases are; an
empty folder is the installed one. A process can import one release, so each has its own.
"""

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from e2e.megatron_replay.releases import RELEASES

WORKER = Path(__file__).with_name("worker.py")


class Worker:
    """A process with one release of Megatron-Core; `run` returns a scenario's facts."""

    def __init__(self, folder, log):
        places = (folder, os.environ.get("PYTHONPATH"), str(WORKER.parents[2]))
        path = os.pathsep.join(part for part in places if part)
        self._log = log
        with log.open("w") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-W", "ignore", str(WORKER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            )
        self.release = self._read()["facts"]

    def run(self, scenario, **arguments):
        self._process.stdin.write(json.dumps([scenario, arguments]) + "\n")
        self._process.stdin.flush()
        answer = self._read()
        if "error" in answer:
            pytest.fail(f"scenario {scenario} raised:\n{answer['error']}")
        return answer["facts"]

    def close(self):
        self._process.stdin.close()
        self._process.wait(timeout=30)
        self._process.stdout.close()

    def _read(self):
        line = self._process.stdout.readline()
        if not line:
            pytest.fail(f"the worker ended:\n{self._log.read_text()[-4000:]}")
        return json.loads(line)


def release_folders():
    """Return release -> folder; without the variable, only what is installed."""
    listed = os.environ.get("ROUTEREPLAY_TEST_MCORE_PATHS")
    if listed is None:
        try:
            return {importlib.metadata.version("megatron-core"): ""}
        except importlib.metadata.PackageNotFoundError:
            return {}
    return dict(part.split("=", 1) for part in listed.split(":") if part)


@pytest.fixture(scope="session", params=RELEASES)
def release_folder(request):
    folders = release_folders()
    if request.param not in folders:
        pytest.skip(f"no Megatron-Core {request.param}; set ROUTEREPLAY_TEST_MCORE_PATHS")
    return request.param, folders[request.param]


@pytest.fixture(scope="session")
def megatron(release_folder, tmp_path_factory):
    release, folder = release_folder
    worker = Worker(folder, tmp_path_factory.mktemp("megatron") / "worker.log")
    assert worker.release.split("+")[0] == release
    yield worker
    worker.close()
