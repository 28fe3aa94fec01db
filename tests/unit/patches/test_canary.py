"""The canary on an engine whose rows are the test's: what it lets pass and what it stops.

That it stops the real servers whose rows are not real is in tests/e2e/vllm_versions.
"""

import asyncio
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from support.recorded_engine import MODEL, Engine, Handed
from unit.patches.test_evidence import routes

from routereplay.patches.vllm import attach
from routereplay.patches.vllm.canary import Canary, CanaryFailed
from routereplay.patches.vllm.engine_init import PROVE_FIRST


class Front:
    """An `AsyncLLM` and an `LLMEngine` in one: answers with the rows that it is given."""

    def __init__(self, rows, mode="refuse", ranks=1):
        self.inner = Engine()
        self.rows, self.asked, self.fails = rows, [], None
        self.engine_core = SimpleNamespace(engine_ranks_managed=list(range(ranks)))
        self.output_processor = SimpleNamespace()
        self.states = []
        self.canary = Canary(
            self.inner.recorder,
            mode,
            vocab_size=1000,
            max_model_len=512,
            publish=self.states.append,
        )
        self.output_processor._routereplay_canary = self.canary
        self.asleep = False

    async def is_sleeping(self):
        return self.asleep

    async def is_paused(self):
        return False

    async def get_supported_tasks(self):
        return ("generate",)

    def answer(self, prompt, request_id):
        request = self.inner.add(request_id, prompt["prompt_token_ids"])
        completion = list(range(500, 508))
        for index, rows in enumerate([self.rows[:32], *np.split(self.rows[32:], 7)]):
            output = SimpleNamespace(
                request_id=request,
                new_token_ids=[completion[index]],
                routed_experts=rows,
                finish_reason="length" if index == 7 else None,
            )
            taken = self.inner.recorder.take([output])
            states = {} if index == 7 else self.inner.states
            self.inner.recorder.settle(taken, [output], states, len(self.inner.states))
        return SimpleNamespace(outputs=[SimpleNamespace(token_ids=completion)])

    async def generate(self, prompt, params, request_id, **options):
        await PROVE_FIRST.wrapper(Front.get_supported_tasks)(self)
        self.asked.append(options.get("data_parallel_rank"))
        if self.fails:
            raise self.fails
        yield self.answer(prompt, request_id)

    def serve(self):
        return asyncio.run(PROVE_FIRST.wrapper(Front.get_supported_tasks)(self))


@pytest.fixture(autouse=True)
def sampling_params(monkeypatch):
    """The unit tests do not import vLLM."""
    module = SimpleNamespace(SamplingParams=lambda **fields: SimpleNamespace(**fields))
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", module)


def test_real_routes_let_the_server_become_ready():
    front = Front(routes())

    assert front.serve() == ("generate",)
    assert front.states == ["pending", "proven"]
    assert front.inner.recorder.model.moe_layers == (1, 2, 3)


def test_nothing_of_the_canary_itself_is_recorded():
    front = Front(routes())
    front.serve()

    assert front.inner.handed.sources == {}
    assert front.inner.handed.drops == {}
    assert front.inner.handed.ledger.stats().captured.rows == 0


def test_zero_routes_end_the_start_up_and_say_what_to_do():
    front = Front(np.zeros_like(routes()))

    with pytest.raises(CanaryFailed) as failed:
        front.serve()
    assert front.states == ["pending", "failed"]
    assert "every id of every row is zero" in str(failed.value)
    assert "--enforce-eager" in str(failed.value)
    assert "ROUTEREPLAY_CANARY=mute" in str(failed.value)


def test_muted_the_server_serves_and_every_request_is_lost_by_name():
    front = Front(np.zeros_like(routes()), mode="mute")

    assert front.serve() == ("generate",)
    front.inner.add("cmpl-a")
    assert front.inner.handed.drops == {("cmpl-a", 0): "canary_failed"}
    assert front.inner.handed.ledger.stats().not_recorded == {"canary_failed": 1}


def test_every_data_parallel_rank_is_asked():
    front = Front(routes(), ranks=2)
    front.serve()

    assert front.asked == [0, 1]


def test_many_who_wait_get_one_canary():
    front = Front(routes())

    async def many():
        ask = PROVE_FIRST.wrapper(Front.get_supported_tasks)
        await asyncio.gather(*[ask(front) for _ in range(5)])

    asyncio.run(many())
    assert front.asked == [None]


def test_an_engine_that_cannot_generate_is_unproven_and_serves():
    front = Front(routes())
    front.fails = RuntimeError("no weights yet")

    assert front.serve() == ("generate",)
    assert front.states == ["pending", "unproven"]
    front.inner.add("cmpl-a")
    assert front.inner.handed.drops == {}


def test_an_engine_that_sleeps_is_asked_when_it_is_awake():
    front = Front(routes())
    front.asleep = True
    front.serve()
    assert front.states == ["pending"]

    front.asleep = False
    front.serve()
    assert front.states == ["pending", "proven"]


def test_an_offline_engine_is_judged_before_use():
    front = Front(np.zeros_like(routes()))
    waiting = []
    front.add_request = lambda request_id, prompt, params: waiting.append((prompt, request_id))
    front.has_unfinished_requests = lambda: bool(waiting)
    front.step = lambda: [front.answer(*waiting.pop())]

    with pytest.raises(CanaryFailed):
        front.canary.before_use(front)


def test_the_model_of_these_tests_is_the_recorders():
    assert MODEL.num_layers == routes().shape[1]


@pytest.mark.parametrize(
    ("load_format", "states"), [("dummy", ["unproven"]), ("auto", ["pending"])]
)
def test_placeholders_for_weights_are_not_judged(monkeypatch, load_format, states):
    """vLLM fills all layers with the same numbers: they choose the same experts, which is real."""
    told = []
    exporter = Handed()
    exporter.only_new_rows, exporter.store_name = True, "store"
    stand_ins = {
        "check_output_processor": lambda processor: None,
        "process_exporter": lambda: exporter,
        "process_settings": lambda: SimpleNamespace(canary="refuse"),
        "process_metrics": lambda: SimpleNamespace(canary=told.append),
        "installed_release": lambda: SimpleNamespace(has=lambda feature: True),
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(attach, name, stand_in)
    config = SimpleNamespace(
        load_config=SimpleNamespace(load_format=load_format),
        model_config=SimpleNamespace(get_vocab_size=lambda: 1000, max_model_len=512),
    )

    canary = attach.attach(SimpleNamespace(), MODEL, config, keep_native=False)

    assert told == states
    assert (canary is None) == (load_format == "dummy"), "nothing judges placeholders at start"
