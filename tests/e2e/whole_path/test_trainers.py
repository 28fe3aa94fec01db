"""What a trainer's adapter sets is what a real vLLM server executed for each token."""

import types

import numpy as np
import pytest
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
