"""The short set of mutants: nothing may pass in silence, and right routes must."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]

pytestmark = [pytest.mark.megatron, pytest.mark.slow]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What a process of its own found: Megatron-Core keeps state for a process's life."""
    results = tmp_path_factory.mktemp("mutants") / "results.jsonl"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
    command = [sys.executable, "-m", "mutants.run", str(results), "--short"]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in results.read_text().splitlines()]


def test_right_routes_pass(found):
    assert found[0]["station"] == "none"
    assert found[0]["caught"] is None


def test_no_mutant_escapes(found):
    escaped = [f"{one['station']}: {one['mutation']}" for one in found[1:] if not one["caught"]]
    assert escaped == []


def test_every_station_is_mutated(found):
    assert {one["station"] for one in found[1:]} == {
        *("engine", "wire", "store", "stitch", "tokens", "pack", "placement", "replay")
    }
