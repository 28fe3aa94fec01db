"""Without a server: offline `LLM.generate`, and `AsyncLLM` in a process of somebody else's."""

import json
import os
import subprocess
import sys

import pytest
from support.behaviours import WITHOUT_TAP

from routereplay.parity.vllm_server import CPU_ENVIRONMENT

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(
        not os.environ.get("ROUTEREPLAY_TEST_BEHAVIOURS"), reason="./scripts/compatibility runs it"
    ),
]

ENGINE = """
import asyncio, json, sys
OPTIONS = dict(
    model=sys.argv[1], dtype="float32", enforce_eager=True, max_model_len=512,
    block_size=32, num_gpu_blocks_override=64,
)
PROMPT = [11, 12, 13, 14, 15, 16]
def sampling(**more):
    from vllm import SamplingParams
    return SamplingParams(temperature=0, ignore_eos=True, **more)
"""

OFFLINE = """
if __name__ == "__main__":
    from vllm import LLM
    prompts = [{"prompt_token_ids": [first, *PROMPT]} for first in (21, 22, 23)]
    asked = sampling(max_tokens=6, extra_args={"trajectory_id": "offline"})
    outputs = [out.outputs[0] for out in LLM(**OPTIONS).generate(prompts, asked)]
    print("RESULT", json.dumps([
        [prompt["prompt_token_ids"], list(out.token_ids), out.routed_experts.tolist()]
        for prompt, out in zip(prompts, outputs)
    ]))
"""

ASYNC = """
async def main():
    from vllm import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM
    engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**OPTIONS))
    async for output in engine.generate(
        {"prompt_token_ids": PROMPT}, sampling(max_tokens=6), "whole"
    ):
        tokens = list(output.outputs[0].token_ids)
    partly = engine.generate({"prompt_token_ids": PROMPT}, sampling(max_tokens=400), "partly")
    async for output in partly:
        if len(output.outputs[0].token_ids) >= 5:
            break
    await engine.abort("partly")
    await partly.aclose()
    await asyncio.sleep(1)
    print("RESULT", json.dumps([PROMPT, tokens]), flush=True)
    engine.shutdown()

if __name__ == "__main__":
    asyncio.run(main())
"""


@pytest.fixture
def run(tmp_path, moe_path, sink, plugin_path):
    def program(text):
        script = tmp_path / "program.py"
        script.write_text(ENGINE + text)
        variables = {**CPU_ENVIRONMENT, "ROUTEREPLAY_STORE_URL": sink.url}
        environment = {**os.environ, **variables, "PYTHONPATH": plugin_path}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        if WITHOUT_TAP:
            environment["ROUTEREPLAY_ENABLED"] = "0"
        command = [sys.executable, str(script), str(moe_path)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
        found = [line[7:] for line in done.stdout.splitlines() if line.startswith("RESULT ")]
        assert found, done.stderr[-4000:]
        return json.loads(found[0])

    return program


@pytest.mark.behaviour("offline LLM.generate")
def test_offline_generation_is_recorded_and_keeps_its_own_routes(run, sink, check):
    outputs = run(OFFLINE)
    records = [r for r in sink.records.values() if r.manifest.trajectory_id == "offline"]

    assert len(records) == len(outputs) == 3
    by_tokens = {tuple(record.token_ids.tolist()): record for record in records}
    for prompt, tokens, routes in outputs:
        record = by_tokens[*prompt, *tokens]
        check(record, prompt, tokens)
        assert record.experts.tolist() == routes


@pytest.mark.behaviour("AsyncLLM in another process", "abort")
def test_an_engine_in_a_process_of_somebody_elses_is_recorded(run, sink, check, reference):
    prompt, tokens = run(ASYNC)

    check(sink.wait("whole"), prompt, tokens)
    partly = sink.wait("partly")
    assert partly.manifest.finish_reason == "abort"
    assert 5 <= partly.manifest.completion_len < 400
    check(partly, prompt, partly.token_ids.tolist()[len(prompt) :])
