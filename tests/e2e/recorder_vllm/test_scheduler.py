"""The recorder's part in the engine gives the front end what vLLM would have given it."""

import json
from pathlib import Path

import pytest
from support.forked_vllm import ForkedVllm

from routereplay.patches.vllm.releases import AUX_OUTPUT

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

SCHEDULE = """
import json, sys
sys.path.insert(0, {tests!r})
from support.scheduled import compared
print("RESULT", json.dumps(compared({model!r})))
"""


def test_every_output_of_the_engine_has_the_rows_that_vllm_gives_it(
    plugin_path, moe_path, release, tmp_path_factory
):
    if release.has(AUX_OUTPUT):
        pytest.skip("its model runner gives rows by request, and needs a GPU")
    code = SCHEDULE.format(tests=str(Path(__file__).parents[2]), model=str(moe_path))
    with ForkedVllm(plugin_path, tmp_path_factory) as forked:
        found, _, log = forked.run(code, ROUTEREPLAY_STORE_URL="http://127.0.0.1:9")

    assert found, log
    same, outputs, preempted, at_once, steps = json.loads(found[0])
    assert same
    assert outputs > 200
    assert preempted, "requests are computed again"
    assert 0 < at_once < steps, "steps that only decode, and others"
