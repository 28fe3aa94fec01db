"""The table against the vLLM that is installed, in processes of their own."""

import json
import os
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

STATE = """
import json, os, sys
{setup}
import vllm.engine.arg_utils
from vllm.plugins import load_general_plugins
load_general_plugins()
from routereplay.patches._probe import MARK, resolve
from routereplay.patches.vllm.table import PATCHES
marks = [getattr(resolve(p.target, p.name)[2], MARK, None) for p in PATCHES]
print("RESULT", json.dumps([marks, [p.name for p in PATCHES]]))
"""

REVERT = """
from routereplay.patches._probe import resolve
from routereplay.patches.vllm.install import install, patch_set
from routereplay.patches.vllm.table import PATCHES
def now(): return [resolve(p.target, p.name)[2] for p in PATCHES]
before = now()
report = install()
assert install() is report
changed = now()
patch_set().revert()
print("RESULT", any(a is b for a, b in zip(before, changed)), now() == before)
"""


def run(code, plugin_path, **environment):
    env = {**os.environ, "PYTHONPATH": plugin_path, "VLLM_LOGGING_LEVEL": "ERROR", **environment}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=200
    )
    found = [line[7:] for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    return found, done


def test_every_row_is_applied_to_the_installed_vllm(plugin_path):
    found, done = run(
        STATE.format(setup=""), plugin_path, ROUTEREPLAY_STORE_URL="http://127.0.0.1:9"
    )

    assert found, done.stderr
    marks, names = json.loads(found[0])
    assert marks == names


def test_enabled_0_leaves_every_function_as_it_was(plugin_path):
    found, done = run(
        STATE.format(setup=""),
        plugin_path,
        ROUTEREPLAY_STORE_URL="http://127.0.0.1:9",
        ROUTEREPLAY_ENABLED="0",
    )

    assert found, done.stderr
    assert set(json.loads(found[0])[0]) == {None}


def test_reverting_restores_the_very_functions(plugin_path):
    found, done = run(REVERT, plugin_path, ROUTEREPLAY_STORE_URL="http://127.0.0.1:9")

    assert found == ["False True"], done.stderr


def test_a_vllm_that_drifted_ends_the_start_up_with_advice(plugin_path):
    drift = (
        "import vllm.v1.engine.output_processor as m\n"
        "m.OutputProcessor.process_outputs = lambda self, outputs: None"
    )
    found, done = run(
        STATE.format(setup=drift), plugin_path, ROUTEREPLAY_STORE_URL="http://127.0.0.1:9"
    )

    assert found == []
    assert done.returncode != 0
    assert "PatchSignatureDrift" in done.stderr
    assert "expected leading parameters (self, engine_core_outputs)" in done.stderr
    assert "ROUTEREPLAY_ENABLED=0" in done.stderr


def test_the_rust_front_end_is_refused(plugin_path):
    found, done = run(
        STATE.format(setup=""),
        plugin_path,
        ROUTEREPLAY_STORE_URL="http://127.0.0.1:9",
        VLLM_USE_RUST_FRONTEND="1",
    )

    assert found == []
    assert "VLLM_USE_RUST_FRONTEND is set" in done.stderr
