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


FORKS = """
import json, os, sys, traceback
import vllm.engine.arg_utils
import vllm.v1.engine.async_llm, vllm.v1.engine.llm_engine, vllm.plugins
for line in sys.stdin:
    code, environment, log = json.loads(line)
    child = os.fork()
    if not child:
        with open(log, "wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os.environ.update(environment)
        try:
            exec(code, {"__name__": "__main__"})
            status = 0
        except BaseException:
            traceback.print_exc()
            status = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print("EXIT", status, flush=True)
"""


@pytest.fixture(scope="module")
def run(plugin_path, tmp_path_factory):
    """Run code in a process that has imported vLLM and loaded no plugin, a fresh one each time.

    Forked, as importing vLLM takes ten seconds of a core.
    """
    env = {k: v for k, v in os.environ.items() if not k.startswith("ROUTEREPLAY_")}
    env |= {"PYTHONPATH": plugin_path, "VLLM_LOGGING_LEVEL": "ERROR"}
    parent = subprocess.Popen(
        [sys.executable, "-c", FORKS],
        env=env,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )

    def run_code(code, **environment):
        log = tmp_path_factory.mktemp("fork") / "log"
        environment = {"ROUTEREPLAY_STORE_URL": "http://127.0.0.1:9"} | environment
        parent.stdin.write(json.dumps([code, environment, str(log)]) + "\n")
        parent.stdin.flush()
        answer = next(line for line in parent.stdout if line.startswith("EXIT "))
        lines = log.read_text().splitlines()
        found = [line[7:] for line in lines if line.startswith("RESULT ")]
        return found, int(answer[5:]), log.read_text()

    with parent:
        yield run_code
        parent.stdin.close()


def test_every_row_is_applied_to_the_installed_vllm(run):
    found, _, log = run(STATE.format(setup=""))

    assert found, log
    marks, names = json.loads(found[0])
    assert marks == names


def test_enabled_0_leaves_every_function_as_it_was(run):
    found, _, log = run(STATE.format(setup=""), ROUTEREPLAY_ENABLED="0")

    assert found, log
    assert set(json.loads(found[0])[0]) == {None}


def test_reverting_restores_the_very_functions(run):
    found, _, log = run(REVERT)

    assert found == ["False True"], log


def test_a_vllm_that_drifted_ends_the_start_up_with_advice(run):
    drift = (
        "import vllm.v1.engine.output_processor as m\n"
        "m.OutputProcessor.process_outputs = lambda self, outputs: None"
    )
    found, status, log = run(STATE.format(setup=drift))

    assert found == []
    assert status != 0
    assert "PatchSignatureDrift" in log
    assert "expected leading parameters (self, engine_core_outputs)" in log
    assert "ROUTEREPLAY_ENABLED=0" in log


def test_the_rust_front_end_is_refused(run):
    found, status, log = run(STATE.format(setup=""), VLLM_USE_RUST_FRONTEND="1")

    assert found == []
    assert status != 0
    assert "VLLM_USE_RUST_FRONTEND is set" in log
