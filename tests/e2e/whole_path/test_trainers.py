"""What a trainer's adapter sets is what a real vLLM server executed for each token."""

import asyncio
import types
from uuid import uuid4

import httpx
import numpy as np
import pytest
from support import trainer_releases
from support.hf_reference import assert_rows_equal_the_reference

from routereplay.client import ModelShape, RouteStoreClient
from routereplay.client.adapters import art, slime, verl

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(600)]

SHAPE = ModelShape(num_layers=4, topk=4, num_experts=16)


@pytest.fixture
def client(store):
    with RouteStoreClient(store.base_url) as client:
        yield client


def sampled(episode):
    mask = np.zeros(len(episode.token_ids), bool)
    mask[[sample.position for sample in episode.samples]] = True
    return mask


def plain(episodes):
    """Without the episode whose other choices are branches of its trajectory."""
    return [episode for episode in episodes if episode.style != "two choices"]


def test_samples_of_slime_and_outputs_of_verl_hold_what_vllm_executed(client, checkpoint, episodes):
    for episode in plain(episodes):
        trained = sampled(episode)
        prompt = int(np.flatnonzero(trained)[0])
        sample = types.SimpleNamespace(
            tokens=episode.token_ids.tolist(),
            response_length=len(trained) - prompt,
            loss_mask=trained[prompt:].tolist(),
            session_id=episode.trajectory_id,
        )
        output = types.SimpleNamespace(
            prompt_ids=sample.tokens[:prompt],
            response_ids=sample.tokens[prompt:],
            response_mask=sample.loss_mask,
        )

        slime.fill_samples(client, [sample], model=SHAPE)
        verl.fill_output(client, output, episode.trajectory_id, model=SHAPE)

        assert_rows_equal_the_reference(
            checkpoint, episode.token_ids, sample.rollout_routed_experts
        )
        assert np.array_equal(output.routed_experts, sample.rollout_routed_experts)


def test_a_sample_asked_for_as_vime_and_prime_rl_do_holds_what_vllm_executed(
    client, server, checkpoint
):
    """Tokens in, tokens out, the session in a header, a second turn behind a tool's result."""
    sample = types.SimpleNamespace(
        tokens=[7, 3, 21, 9, 40], response_length=0, loss_mask=[], session_id=str(uuid4())
    )
    for tool_result in ([], [11, 12, 13]):
        sample.tokens += tool_result
        body = {
            "model": "tiny",
            "token_ids": sample.tokens,
            "sampling_params": {"max_tokens": 6, "temperature": 1.0, "logprobs": 1},
        }
        answer = httpx.post(
            f"{server.base_url}/inference/v1/generate",
            json=body,
            headers={"x-session-id": sample.session_id},
            timeout=120,
        )
        token_ids = answer.raise_for_status().json()["choices"][0]["token_ids"]
        sample.tokens = sample.tokens + token_ids
        sample.loss_mask += [0] * len(tool_result) + [1] * len(token_ids)
        sample.response_length = len(sample.loss_mask)

    slime.fill_samples(client, [sample], model=SHAPE)

    assert_rows_equal_the_reference(
        checkpoint, np.asarray(sample.tokens), sample.rollout_routed_experts
    )


def test_choices_of_art_hold_what_vllm_executed(client, server, checkpoint):
    from openai import OpenAI

    openai = OpenAI(base_url=f"{server.base_url}/v1", api_key="none", timeout=120)
    response = openai.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "What is a router?"}],
        max_tokens=8,
        n=2,
        seed=3,
        logprobs=True,
        extra_body={"return_token_ids": True},
    )
    trajectory = types.SimpleNamespace(
        exchanges=types.SimpleNamespace(
            chat_completions=[types.SimpleNamespace(response=response)]
        ),
        messages_and_choices=[],
        additional_histories=[],
    )

    art.attach_routes(client, [trajectory], model=SHAPE)

    for choice in response.choices:
        routing = choice.model_extra["art_moe_routing"]
        tokens = routing["prompt_token_ids"] + routing["completion_token_ids"]
        rows = routing["routed_experts"].copy()
        assert (rows[:, 0] == np.arange(SHAPE.topk)).all()
        rows[:, 0] = 0  # the dense layer, which ART wants filled
        assert_rows_equal_the_reference(checkpoint, np.asarray(tokens), rows)


class VllmClient:
    """verl's `LLMServerClient` over HTTP, where verl's own asks a Ray actor with vLLM inside."""

    def __init__(self, base_url, token_output):
        self._url, self._token_output = f"{base_url}/v1/completions", token_output

    async def generate(self, request_id, *, prompt_ids, sampling_params, **_):
        body = {
            "model": "tiny",
            "prompt": list(prompt_ids),
            "max_tokens": 12,
            "temperature": sampling_params["temperature"],
            "vllm_xargs": sampling_params["extra_args"],
            "return_token_ids": True,
        }
        answer = await asyncio.to_thread(httpx.post, self._url, json=body, timeout=120)
        token_ids = answer.raise_for_status().json()["choices"][0]["token_ids"]
        return self._token_output(token_ids=token_ids, log_probs=None)


def test_an_agent_loop_of_verl_hands_on_what_vllm_executed(client, server, checkpoint):
    """The class of docs/trainers/verl.md, around verl's own loop."""
    from transformers import AutoTokenizer

    base, single_turn, replica = trainer_releases.verl(
        "verl.experimental.agent_loop.agent_loop",
        "verl.experimental.agent_loop.single_turn_agent_loop",
        "verl.workers.rollout.replica",
    )

    class StoredAgentLoop(single_turn.SingleTurnAgentLoop):
        async def run(self, sampling_params, **kwargs):
            trajectory_id = uuid4().hex
            given = verl.with_trajectory(sampling_params, trajectory_id)
            output = await super().run(given, **kwargs)
            await asyncio.to_thread(verl.fill_output, client, output, trajectory_id)
            return output

    async def play():
        rollout = types.SimpleNamespace(prompt_length=64, response_length=10)
        config = types.SimpleNamespace(actor_rollout_ref=types.SimpleNamespace(rollout=rollout))
        loop = StoredAgentLoop(
            trainer_config=base.DictConfigWrap(config),
            server_manager=VllmClient(server.base_url, replica.TokenOutput),
            tokenizer=AutoTokenizer.from_pretrained(checkpoint),
            processor=None,
            dataset_cls=None,
            data_config=base.DictConfigWrap({}),
            name="stored_agent",  # of the yaml, which verl hands on
        )
        question = {"role": "user", "content": "What is a router?"}
        return await asyncio.gather(
            *(loop.run({"temperature": 1.0}, raw_prompt=[question]) for _ in range(3))
        )

    for output in asyncio.run(play()):
        # Two of the twelve sampled tokens are cut off by verl.
        assert len(output.response_ids) == 10
        tokens = np.asarray(output.prompt_ids + output.response_ids)
        sent = output.as_dict()["routed_experts"].numpy()
        assert len(sent) == len(tokens)
        assert_rows_equal_the_reference(checkpoint, tokens, sent[:-1])
