"""verl 0.9.1 and openpipe-art 0.5.23 as released: what their own code makes of our routes."""

import asyncio
import types

import numpy as np
import pytest
import torch
from support import trainer_releases
from support.rollouts import Recorded

from routereplay.client import MisalignedRoutes, ModelShape, RouteStoreClient
from routereplay.client.adapters import art, verl

pytestmark = pytest.mark.parametrize("store", ["embedded"], indirect=True)

SHAPE = ModelShape(num_layers=24, topk=6, num_experts=64)
PROMPT, RESPONSE = 90, 420


@pytest.fixture
def client(store):
    with RouteStoreClient(store.sidecar.url) as client:
        yield client


@pytest.fixture(scope="module")
def released():
    protocol, padding, loop, replay = trainer_releases.verl(
        "verl",
        "verl.workers.utils.padding",
        "verl.experimental.agent_loop.agent_loop",
        "verl.utils.megatron.router_replay_utils",
    )
    return types.SimpleNamespace(
        DataProto=protocol.DataProto,
        to_no_padding=padding.left_right_2_no_padding,
        AgentLoopOutput=loop.AgentLoopOutput,
        AgentLoopMetrics=loop.AgentLoopMetrics,
        align=replay.align_r3_router_replay_data,
        mask=replay.build_r3_replay_mask,
    )


def output_of(released, recorded):
    prompt = recorded.first_prompt
    return released.AgentLoopOutput(
        prompt_ids=recorded.token_ids[:prompt].tolist(),
        response_ids=recorded.token_ids[prompt:].tolist(),
        response_mask=recorded.sampled[prompt:].astype(int).tolist(),
        metrics=released.AgentLoopMetrics(),
    )


def batch_of(released, recorded):
    """Padded as `generate_sequences` documents it: prompts on the left, responses on the right."""
    fields = {
        name: torch.zeros(len(recorded), PROMPT + RESPONSE, dtype=torch.int64)
        for name in ("input_ids", "attention_mask", "position_ids")
    }
    fields["response_mask"] = torch.zeros(len(recorded), RESPONSE, dtype=torch.int64)
    for row, one in enumerate(recorded):
        start = PROMPT - one.first_prompt
        real = slice(start, start + len(one.token_ids))
        fields["input_ids"][row, real] = torch.from_numpy(one.token_ids.astype(np.int64))
        fields["attention_mask"][row, real] = 1
        fields["position_ids"][row, real] = torch.arange(len(one.token_ids))
        sampled = torch.from_numpy(one.sampled[one.first_prompt :].astype(np.int64))
        fields["response_mask"][row, : len(sampled)] = sampled
    names = np.array([one.name for one in recorded], dtype=object)
    return released.DataProto.from_dict(fields, non_tensors={"trajectory_id": names})


def test_verl_replays_every_row_of_an_agent_loops_output(store, client, released):
    recorded = Recorded("verl-output", 3, seed=90).store_in(store)
    output = output_of(released, recorded)

    verl.fill_output(client, output, recorded.name, model=SHAPE)

    sent = output.as_dict()["routed_experts"]
    assert sent.dtype == torch.int16
    assert sent.shape[0] == len(recorded.token_ids)  # verl adds the row of the last token
    assert np.array_equal(sent[:-1].numpy(), recorded.experts)


def test_verl_replays_every_row_of_a_batch_but_the_one_that_never_exists(store, client, released):
    recorded = [Recorded(f"verl-batch-{n}", 1 + n, seed=91 + n).store_in(store) for n in range(3)]
    batch = batch_of(released, recorded)

    verl.fill_batch(client, batch, batch.non_tensor_batch["trajectory_id"], model=SHAPE)

    data = released.to_no_padding(batch.to_tensordict())
    routed = released.align(data["routed_experts"], data["input_ids"])
    replayed = released.mask(data["input_ids"], data["response_mask"])
    assert routed.dtype == torch.int16
    for one, rows, mask in zip(recorded, routed.unbind(), replayed.unbind(), strict=True):
        assert mask.tolist() == [True] * len(one.experts) + [False]
        assert np.array_equal(rows[mask].numpy(), one.experts)


def test_a_row_of_verls_batch_with_other_tokens_is_named(store, client, released):
    recorded = [Recorded(f"verl-edit-{n}", 2, seed=94 + n).store_in(store) for n in range(2)]
    batch = batch_of(released, recorded)
    names = batch.non_tensor_batch["trajectory_id"]
    batch.batch["input_ids"][1, PROMPT + 3] += 1

    with pytest.raises(MisalignedRoutes, match=r"^sample 1 \(trajectory verl-edit-1\)"):
        verl.fill_batch(client, batch, names, wait_s=0.1)
    assert "routed_experts" not in batch.batch
    with pytest.raises(ValueError, match="1 trajectory ids for a batch of 2 rows"):
        verl.fill_batch(client, batch, names[:1])


def test_an_agent_loop_says_which_trajectory_and_waits_for_its_routes(store, client, released):
    """The class of docs/trainers/verl.md, around a loop that asks no engine."""
    recorded = Recorded("verl-loop", 2, seed=97)
    asked = []

    class Loop:
        async def run(self, sampling_params, **kwargs):
            asked.append(sampling_params)
            name = sampling_params["extra_args"]["trajectory_id"]
            for upload in recorded.uploads:
                store.put(upload.changed(trajectory_id=name))
            return output_of(released, recorded)

    class WithRoutes(Loop):
        async def run(self, sampling_params, **kwargs):
            name = "a-new-id"
            output = await super().run(verl.with_trajectory(sampling_params, name), **kwargs)
            await asyncio.to_thread(verl.fill_output, client, output, name)
            return output

    given = {"temperature": 1.0, "extra_args": {"kv": 1}}
    output = asyncio.run(WithRoutes().run(given, raw_prompt=[]))

    assert asked == [{"temperature": 1.0, "extra_args": {"kv": 1, "trajectory_id": "a-new-id"}}]
    assert given == {"temperature": 1.0, "extra_args": {"kv": 1}}
    assert np.array_equal(output.routed_experts, recorded.experts)


@pytest.fixture(scope="module")
def moe_routing():
    (module,) = trainer_releases.art("art.preprocessing.moe_routing")
    return module


def completions_of(recorded, *, extra_choice=False):
    """The responses of each turn as the openai client hands them out."""
    from openai.types.chat import ChatCompletion

    responses = []
    for upload in recorded.uploads:
        prompt = upload.manifest.prompt_len
        choice = {
            "index": 0,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": ""},
            "token_ids": upload.token_ids[prompt:].tolist(),
        }
        body = {
            "id": upload.manifest.request_id,
            "choices": [choice],
            "created": 0,
            "model": "tiny",
            "object": "chat.completion",
            "prompt_token_ids": upload.token_ids[:prompt].tolist(),
        }
        responses.append(ChatCompletion.model_validate(body))
    return responses


def trajectory_of(responses=(), listed=()):
    exchanges = [types.SimpleNamespace(response=response) for response in responses]
    return types.SimpleNamespace(
        exchanges=types.SimpleNamespace(chat_completions=exchanges),
        messages_and_choices=list(listed),
        additional_histories=[],
    )


def aligned(moe_routing, recorded, choices):
    routes, stats = moe_routing.align_choice_routes_to_tokenized_result(
        token_ids=recorded.token_ids.tolist(),
        choices=choices,
        choice_offsets=[upload.manifest.prompt_len for upload in recorded.uploads],
        choice_token_lengths=[upload.manifest.completion_len for upload in recorded.uploads],
    )
    assert stats.choices_with_routing == len(choices)
    if isinstance(routes, moe_routing.MoeRouteSegments):
        return np.concatenate(routes.segments), routes.num_experts
    return np.asarray(routes), routes.num_experts


@pytest.mark.parametrize("found_by", ["response", "trajectory", "legacy"])
def test_art_aligns_the_routes_of_every_choice(store, client, moe_routing, found_by):
    recorded = Recorded(f"art-{found_by}", 3, seed=100).store_in(store)
    responses = completions_of(recorded)
    choices = [response.choices[0] for response in responses]
    trajectory = trajectory_of(responses)
    if found_by == "legacy":
        for response, choice in zip(responses, choices, strict=True):
            choice.model_extra["prompt_token_ids"] = response.prompt_token_ids
        trajectory = trajectory_of(listed=[{"role": "user", "content": ""}, *choices])
    names = None if found_by == "response" else [recorded.name]

    art.attach_routes(client, [trajectory], names, model=SHAPE)

    rows, num_experts = aligned(moe_routing, recorded, choices)
    assert num_experts == SHAPE.num_experts
    assert len(rows) == len(recorded.token_ids)
    assert np.array_equal(rows[:-1, 1:], recorded.experts[:, 1:])
    assert (rows[:-1, 0] == np.arange(SHAPE.topk)).all()  # the dense layer, as ART has it


def test_art_choices_without_ids_or_routes_are_named(store, client):
    recorded = Recorded("art-absent", 1, seed=101)
    (response,) = completions_of(recorded)
    choice = response.choices[0]

    with pytest.raises(Exception, match=r"^sample 0 \(requests chatcmpl-art-absent-0 choice 0\)"):
        art.attach_routes(client, [trajectory_of([response])], wait_s=0.1)
    with pytest.raises(ValueError, match=r"trajectory 0 has choices .* pass trajectory_ids"):
        art.attach_routes(client, [trajectory_of(listed=[choice])])
    del choice.model_extra["token_ids"]
    with pytest.raises(ValueError, match="response chatcmpl-art-absent-0, choice 0, .*token ids"):
        art.attach_routes(client, [trajectory_of([response])])
