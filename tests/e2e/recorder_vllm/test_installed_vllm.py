"""The table against the vLLM that is installed, in processes of their own."""

import json

import pytest
from support.forked_vllm import ForkedVllm

from routereplay.patches.vllm.table import TAP_PATCHES

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
from routereplay.patches.vllm.table import FRONT_END_PATCHES
def now(): return [resolve(p.target, p.name)[2] for p in FRONT_END_PATCHES]
before = now()
report = install()
assert install() is report
changed = now()
patch_set().revert()
print("RESULT", any(a is b for a, b in zip(before, changed)), now() == before)
"""


@pytest.fixture(scope="module")
def run(plugin_path, tmp_path_factory):
    with ForkedVllm(plugin_path, tmp_path_factory) as forked:
        yield forked.run


def test_every_row_is_applied_to_the_installed_vllm(run):
    found, _, log = run(STATE.format(setup=""), VLLM_USE_RUST_FRONTEND="1")

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


def test_an_engine_records_by_itself_only_where_its_front_end_is_not_python(run):
    found, _, log = run(STATE.format(setup=""))

    assert found, log
    marks, names = json.loads(found[0])
    of_tap = {patch.name for patch in TAP_PATCHES}
    assert {name for mark, name in zip(marks, names, strict=True) if mark is None} == of_tap


CONFIGURED = """
from vllm.plugins import load_general_plugins
load_general_plugins()
import vllm.v1.engine.async_llm as async_llm
from vllm.engine.arg_utils import AsyncEngineArgs
{setup}
config = AsyncEngineArgs(model={model!r}, enforce_eager=True, **{options!r}).create_engine_config()
async_llm.EngineCoreClient = None  # A model would be loaded here.
async_llm.AsyncLLM(config, None, False)
"""
THEIRS = """
class Theirs(async_llm.OutputProcessor):
    def process_outputs(self, *arguments): return None
async_llm.OutputProcessor = Theirs
"""
NIXL = {"kv_connector": "NixlConnector", "kv_role": "kv_both"}


@pytest.mark.parametrize(
    ("options", "setup", "words"),
    [
        pytest.param(
            {"pipeline_parallel_size": 2},
            "",
            "pipeline parallel inference: each stage's workers capture",
            marks=pytest.mark.behaviour("refused at start: pipeline parallel inference"),
        ),
        pytest.param(
            {"kv_transfer_config": NIXL},
            "",
            "prefill/decode disaggregation: the prompt is computed by another engine",
            marks=pytest.mark.behaviour("refused at start: prefill/decode disaggregation"),
        ),
        pytest.param(
            {},
            THEIRS,
            "Theirs, whose process_outputs is not the one that was patched",
            marks=pytest.mark.behaviour("refused at start: an OutputProcessor of somebody else"),
        ),
    ],
    ids=["pipeline", "disaggregation", "output-processor"],
)
def test_an_engine_that_cannot_be_recorded_is_refused_before_its_model_is_loaded(
    run, moe_path, options, setup, words
):
    code = CONFIGURED.format(model=str(moe_path), options=options, setup=setup)
    _, status, log = run(code, VLLM_CPU_KVCACHE_SPACE="1", VLLM_HOST_IP="127.0.0.1")

    assert status != 0
    assert "UnsupportedEngine: " in log
    assert words in log
    assert "ROUTEREPLAY_ENABLED=0" in log
    assert "NoneType" not in log, "it came to the model"


def test_an_engine_that_can_be_recorded_comes_to_its_model(run, moe_path):
    code = CONFIGURED.format(model=str(moe_path), options={}, setup="")
    _, status, log = run(code, VLLM_CPU_KVCACHE_SPACE="1", VLLM_HOST_IP="127.0.0.1")

    assert status != 0
    assert "'NoneType' object has no attribute 'make_async_mp_client'" in log
    assert "the recorder has switched" in log.lower()
