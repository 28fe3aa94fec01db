"""Row ids and routes on the device of the model; on CUDA, without waiting for it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

pytestmark = [pytest.mark.megatron, pytest.mark.slow]

PROGRAM = Path(__file__).with_name("on_device.py")


def facts_on_gpu(folder):
    path = os.pathsep.join(part for part in (folder, os.environ.get("PYTHONPATH")) if part)
    finished = subprocess.run(
        [sys.executable, "-W", "ignore", str(PROGRAM)],
        capture_output=True,
        text=True,
        timeout=240,
        env=os.environ | {"PYTHONPATH": path},
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-4000:]
    return json.loads(finished.stdout.splitlines()[-1])


def check(facts, refused):
    assert facts["maps_equal"]
    assert facts["mixed_equal"]
    assert facts["loss_difference"] < 1e-5
    assert facts["gradient_difference"] < 1e-4
    assert facts["refused"] == [refused, refused]


def test_replay_is_the_same_wherever_the_row_ids_are(megatron):
    # A bad row is found at once.
    check(megatron.run("on_device.facts_on", device="cpu"), "replay_mismatch")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_row_ids_on_the_host_or_on_the_gpu_replay_the_same(release_folder):
    # A bad row is found when the step ends.
    check(facts_on_gpu(release_folder[1]), "replay_incomplete")
