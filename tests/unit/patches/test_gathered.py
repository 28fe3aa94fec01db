"""Rows that travel together come to the outputs that they were taken from."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from routereplay.patches.vllm import gathered, scheduler
from routereplay.patches.vllm.gathered import Scatter, gather

_LAYERS, _TOPK = 3, 2


def output(name, rows, tokens=None):
    """An `EngineCoreOutput`: `rows` None, or how many; as many tokens unless given."""
    array = None
    if rows is not None:
        array = np.random.default_rng().integers(0, 250, (rows, _LAYERS, _TOPK), np.uint8)
    tokens = [7] * (rows or 0 if tokens is None else tokens)
    return SimpleNamespace(request_id=name, new_token_ids=tokens, routed_experts=array)


def over(outputs, *, records=None, part=128):
    """The outputs as the front end sees them after they were gathered and scattered."""
    sent = [copy.copy(one) for one in outputs]
    gather(sent)
    scatter = Scatter({} if records is None else records)
    for start in range(0, len(sent), part):
        scatter.give(sent[start : start + part])
    return sent


def same(found, expected):
    return len(found) == len(expected) and all(
        (one.routed_experts is None and other.routed_experts is None)
        or np.array_equal(one.routed_experts, other.routed_experts)
        for one, other in zip(found, expected, strict=True)
    )


# One token; several of speculative decoding; a prompt; no token and no row; a token without one.
_KINDS = st.sampled_from([(1, 1), (1, 1), (3, 3), (9, 1), (None, 0), (0, 0), (None, 1)])


@given(kinds=st.lists(_KINDS, max_size=20), part=st.integers(1, 21))
def test_every_output_gets_its_rows_back(kinds, part):
    outputs = [output(str(n), rows, tokens) for n, (rows, tokens) in enumerate(kinds)]

    assert same(over(outputs, part=part), outputs)


def test_the_rows_of_a_step_travel_as_one_array():
    outputs = [output("a", 9, 1), *(output(str(n), 1) for n in range(20))]
    gather(outputs)

    arrays = [one.routed_experts for one in outputs if one.routed_experts is not None]
    assert [array.shape for array in arrays] == [(9, 3, 2), (1, 20, 3, 2)]


def test_rows_that_are_taken_at_once_are_not_copied_and_those_that_stay_are():
    taken, stays = SimpleNamespace(strip=True), SimpleNamespace(strip=False)
    step = [output("a", 1), output("b", 1), output("c", 1)]
    found = over(step, records={"a": taken, "b": stays})

    assert [one.routed_experts.base is not None for one in found] == [True, False, False]


def test_rows_that_are_missing_are_nobodys_and_the_next_step_starts_afresh():
    first, second = ([output(name, 1) for name in "abc"] for _ in range(2))
    scatter = Scatter({})
    gather(first)
    first[0].routed_experts = first[0].routed_experts[:, :2]
    scatter.give(first)
    expected = [one.routed_experts for one in second]
    gather(second)
    scatter.give(second)

    assert [len(one.routed_experts) for one in first] == [1, 1, 0]
    assert all(map(np.array_equal, expected, [one.routed_experts for one in second]))


def test_what_cannot_be_scattered_never_reaches_vllm():
    step = [output(name, 1) for name in "ab"]
    gather(step)
    Scatter({}).drop(step)

    assert [one.routed_experts for one in step] == [None, None]


@pytest.fixture
def engine():
    """vLLM's scheduler as the patches see it; the step's outputs are what it returns."""

    class Scheduler:
        def __init__(self):
            self.step = {}
            self.seen = []
            self.requests = {}
            self.listed = []
            self.enable_return_routed_experts = True
            self.routed_experts_mgr = SimpleNamespace(attn_gid=1)
            self.kv_cache_manager = SimpleNamespace(get_blocks=self.blocks)

        def blocks(self, request_id):
            self.listed.append(request_id)
            return SimpleNamespace(get_block_ids=lambda: ([], [len(request_id)]))

        def add_request(self, request):
            self.requests[request.request_id] = request

        def update_from_output(self, scheduler_output, model_runner_output):
            self.seen.append(getattr(model_runner_output, "routed_experts", None))
            return self.step

        def _update_after_schedule(self, scheduler_output):
            if self.enable_return_routed_experts:
                for request_id in scheduler_output.num_scheduled_tokens:
                    self._re_block_ids[request_id] = self.blocks(request_id).get_block_ids()[1]

    for patch in (scheduler.NOTE_CLIENT, scheduler.GATHER_ROWS, scheduler.NOTE_FEW_BLOCKS):
        name = patch.target.rpartition(".")[2]
        setattr(Scheduler, name, patch.wrapper(getattr(Scheduler, name)))
    return Scheduler()


def request(name, client, extra_args=None, tokens=0):
    params = SimpleNamespace(extra_args=extra_args)
    return SimpleNamespace(
        request_id=name, client_index=client, sampling_params=params, num_output_tokens=tokens
    )


def decode_step(names, **changed):
    """`SchedulerOutput` and `ModelRunnerOutput` of a step; the runner has another order."""
    order = sorted(names, reverse=True)
    rows = np.random.default_rng(7).integers(0, 250, (len(names), _LAYERS, _TOPK), np.int32)
    plan = {
        "num_scheduled_tokens": dict.fromkeys(names, 1),
        "total_num_scheduled_tokens": len(names),
        "scheduled_spec_decode_tokens": {},
        **changed,
    }
    routes = SimpleNamespace(routing_data=rows, slot_mapping=np.arange(len(names)) + 10)
    index = {name: row for row, name in enumerate(order)}
    return SimpleNamespace(**plan), SimpleNamespace(routed_experts=routes, req_id_to_index=index)


@pytest.fixture
def decoding(engine):
    """An engine of 0.30 whose requests a, b and c decode, for a front end that asks."""
    slots = np.zeros((20, _LAYERS, _TOPK), np.uint8)
    engine.routed_experts_mgr.routed_experts_by_slot = slots
    engine.routed_experts_mgr.store_batch = lambda rows, places: slots.__setitem__(places, rows)
    engine._re_block_ids = {}
    engine.add_request(request("a", 0, {gathered.ASKS: True}, tokens=5))
    outputs = [output(name, None, 1) for name in "abc"]
    engine.step = {0: SimpleNamespace(outputs=[*outputs, output("silent", None, 0)])}
    return engine


def test_the_rows_of_a_step_that_only_decodes_are_taken_at_once(decoding):
    plan, result = decode_step("abc")
    rows = result.routed_experts.routing_data
    outputs = decoding.update_from_output(plan, result)[0].outputs
    Scatter({}).give(outputs)

    assert decoding.seen == [None]
    found = [one.routed_experts for one in outputs[:3]]
    assert [one.dtype for one in found] == [np.uint8] * 3
    assert np.array_equal(np.concatenate(found), rows[[2, 1, 0]])
    assert outputs[3].routed_experts is None
    assert np.array_equal(decoding.routed_experts_mgr.routed_experts_by_slot[10:13], rows)


def test_a_front_end_that_does_not_ask_gets_the_rows_of_such_a_step_one_by_one(decoding):
    plan, result = decode_step("abc")
    rows = result.routed_experts.routing_data
    decoding.step = {
        0: SimpleNamespace(outputs=[output("a", None, 1)]),
        1: SimpleNamespace(outputs=[output("b", None, 1), output("c", None, 1)]),
    }
    updated = decoding.update_from_output(plan, result)

    found = [one.routed_experts for step in updated.values() for one in step.outputs]
    assert np.array_equal(np.concatenate(found), rows[[2, 1, 0]])


@pytest.mark.parametrize(
    "changed",
    [
        {"total_num_scheduled_tokens": 4},
        {"scheduled_spec_decode_tokens": {"a": [3]}},
        {"num_scheduled_tokens": {"a": 2, "b": 1}},
    ],
    ids=["a prompt", "a draft", "two tokens"],
)
def test_the_rows_of_any_other_step_are_left_to_vllm(decoding, changed):
    plan, result = decode_step("abc", **changed)
    decoding.update_from_output(plan, result)

    assert decoding.seen == [result.routed_experts]
    assert result.routed_experts is not None


def test_a_prompt_of_one_token_is_left_to_vllm(decoding):
    decoding._re_block_ids = {"b": [1]}
    plan, result = decode_step("abc")
    decoding.update_from_output(plan, result)

    assert decoding.seen == [result.routed_experts]
    assert result.routed_experts is not None


def test_only_a_front_end_that_asks_gets_gathered_rows(engine):
    engine.add_request(request("a", 0))
    engine.add_request(request("b", 1, {gathered.ASKS: True}))
    engine.add_request(SimpleNamespace(request_id="pooling", client_index=2, sampling_params=None))
    engine.step = {n: SimpleNamespace(outputs=[output("x", 1), output("y", 1)]) for n in range(3)}
    updated = engine.update_from_output(*decode_step(3 * "xy"))

    assert [updated[n].outputs[0].routed_experts.ndim for n in range(3)] == [3, 4, 3]


def test_a_step_that_cannot_be_gathered_goes_as_vllm_made_it(engine):
    engine.add_request(request("a", 0, {gathered.ASKS: True}))
    step = [output("x", 1), SimpleNamespace(routed_experts=3, new_token_ids=[7])]
    engine.step = {0: SimpleNamespace(outputs=step)}

    assert engine.update_from_output(*decode_step("xy"))[0].outputs[0].routed_experts.ndim == 3


def test_only_the_blocks_of_prompts_are_listed(engine):
    engine._re_block_ids = {"older": [3]}
    for name, tokens in (("new", 0), ("running", 5), ("older", 1)):
        engine.add_request(request(name, 0, tokens=tokens))
    engine._update_after_schedule(SimpleNamespace(num_scheduled_tokens={"new": 4, "running": 1}))

    assert engine.listed == ["new"]
    assert engine._re_block_ids == {"older": [3], "new": [3]}
    assert engine.enable_return_routed_experts


def test_if_it_is_not_known_which_are_prompts_all_blocks_are_listed(engine):
    engine._re_block_ids = {}
    engine._update_after_schedule(SimpleNamespace(num_scheduled_tokens={"unknown": 1}))

    assert engine.listed == ["unknown"]


def test_a_release_that_lists_no_blocks_is_left_alone(engine):
    engine.enable_return_routed_experts = False
    engine._update_after_schedule(SimpleNamespace(num_scheduled_tokens={"a": 1}))

    assert not engine.listed
    assert not engine.enable_return_routed_experts
