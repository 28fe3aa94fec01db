"""An engine is judged when weights may have come, the more so if it began with placeholders."""

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest
from unit.patches.test_canary import Front
from unit.patches.test_canary import sampling_params as sampling_params
from unit.patches.test_evidence import routes

from routereplay.patches.vllm.engine_init import PROVE_FIRST
from routereplay.patches.vllm.late_canary import PERIOD_S, LateCanary
from routereplay.patches.vllm.new_weights import NOTE_COMMAND, NOTE_RESUME, NOTE_WAKE_UP


def placeholders():
    """All layers hold the same numbers: they choose the same experts."""
    rows = routes(dense=())
    rows[:] = rows[:, :1]
    return rows


REAL, ZERO = routes(), np.zeros_like(routes())


class Late(Front):
    """A front end whose engine began with placeholders."""

    def __init__(self, rows, ranks=1):
        super().__init__(rows, ranks=ranks)
        self.states.clear()
        self.now = 0.0
        self.prompts = []
        self.canary = LateCanary(
            self.inner.recorder,
            vocab_size=1000,
            max_model_len=512,
            publish=self.states.append,
            clock=lambda: self.now,
        )
        self.output_processor._routereplay_canary = self.canary

    def answer(self, prompt, request_id):
        self.prompts.append(tuple(prompt["prompt_token_ids"]))
        return super().answer(prompt, request_id)

    async def collective_rpc(self, method):
        if method == "fails":
            raise RuntimeError(method)
        self.rows = REAL

    def command(self, method="update_weights"):
        asyncio.run(NOTE_COMMAND.wrapper(Late.collective_rpc)(self, method))

    def request(self, name):
        """What becomes of a request that is admitted now."""
        self.serve()
        self.inner.add(name)
        return self.inner.handed.drops.get((name, 0), "recorded")


def test_placeholders_are_not_judged_and_the_first_request_after_new_weights_is_told():
    front = Late(placeholders())
    assert front.request("before") == "recorded"
    assert (front.asked, front.states) == ([], ["unproven"])

    front.command()
    assert front.request("after") == "recorded"
    assert (front.asked, front.states) == ([None], ["unproven", "proven"])
    assert front.inner.recorder.model.moe_layers == (1, 2, 3)

    front.request("later")
    assert front.asked == [None], "once is enough for these weights"
    front.command()
    front.request("with others")
    assert front.asked == [None, None]


def test_weights_that_have_not_come_yet_leave_it_unproven_until_they_have():
    front = Late(placeholders())
    front.canary.weights_may_have_come()
    assert front.request("warm-up") == "recorded"
    assert front.states == ["unproven", "unproven"]

    front.command()
    front.request("after")
    assert front.states[-1] == "proven"
    assert len(set(front.prompts)) == 2, "no prefix cache has the rows of the placeholders"


def test_routes_that_no_weights_explain_are_lost_by_name_until_they_are_real():
    front = Late(ZERO)
    front.canary.weights_may_have_come()

    assert front.request("served") == "canary_failed"
    assert front.states[-1] == "failed"
    front.command()
    assert front.request("again") == "recorded"
    assert front.states[-1] == "proven"


def hook_lost():
    """A kernel that was built anew captures nothing: the buffer keeps another step's rows."""
    rows = routes(seed=5)
    rows[32:] = rows[31]
    return rows


@pytest.mark.parametrize("damaged", [ZERO, placeholders(), hook_lost()])
def test_an_engine_that_was_real_and_lost_its_hook_with_new_weights_records_no_more(damaged):
    front = Front(REAL)
    command = NOTE_RESUME.wrapper(Front.get_supported_tasks)
    front.serve()
    assert front.states == ["pending", "proven"]

    asyncio.run(command(front))
    front.rows = damaged
    assert front.serve() == ("generate",), "it serves"
    front.inner.add("stale")
    assert front.inner.handed.drops == {("stale", 0): "canary_failed"}
    assert front.states[-1] == "failed"

    asyncio.run(command(front))
    front.rows = REAL
    front.serve()
    front.inner.add("real")
    assert ("real", 0) not in front.inner.handed.drops
    assert front.states[-1] == "proven"


def test_one_bad_rank_of_two_is_enough():
    front = Late(REAL, ranks=2)
    answer = front.answer

    def of_rank(prompt, request_id):
        front.rows = ZERO if request_id.endswith("-1") else REAL
        return answer(prompt, request_id)

    front.answer = of_rank
    front.canary.weights_may_have_come()

    assert front.request("served") == "canary_failed"


def test_weights_that_nobody_saw_come_are_found_within_a_minute():
    front = Late(REAL)
    front.request("before")
    front.now = PERIOD_S - 1
    front.request("before")
    assert front.asked == []

    front.now = PERIOD_S
    front.request("after")
    assert front.states[-1] == "proven"


def test_an_engine_that_sleeps_is_not_asked_and_the_change_is_not_forgotten():
    front = Late(REAL)
    front.asleep = True
    front.canary.weights_may_have_come()
    front.request("asleep")
    assert front.asked == []

    front.asleep = False
    front.request("awake")
    assert front.states[-1] == "proven"


def test_a_canary_that_fails_proves_nothing_and_serves():
    front = Late(REAL)
    front.fails = RuntimeError("no kernel")
    front.canary.weights_may_have_come()

    assert front.request("served") == "recorded"
    assert front.states[-1] == "unproven"


def test_many_who_wait_get_one_verdict_and_one_who_leaves_takes_it_with_him():
    front = Late(REAL)
    front.canary.weights_may_have_come()
    ask = PROVE_FIRST.wrapper(Front.get_supported_tasks)
    answer = front.generate

    async def slow(*arguments, **options):
        await asyncio.sleep(0.05)
        async for output in answer(*arguments, **options):
            yield output

    front.generate = slow

    async def many():
        first = asyncio.create_task(ask(front))
        await asyncio.sleep(0.01)
        first.cancel()
        await asyncio.gather(*[ask(front) for _ in range(4)])

    asyncio.run(many())
    assert front.asked == [None]
    assert front.states == ["unproven", "proven"]


def test_weights_that_come_while_it_looks_are_looked_at_by_the_next():
    front = Late(placeholders())
    front.canary.weights_may_have_come()
    answer = front.answer

    def interrupted(prompt, request_id):
        if len(front.prompts) == 0:
            front.canary.weights_may_have_come()
        return answer(prompt, request_id)

    front.answer = interrupted
    front.request("first")
    assert front.states[-1] == "unproven"
    front.rows = REAL
    front.request("second")
    assert front.states[-1] == "proven"


@pytest.mark.parametrize("patch", [NOTE_COMMAND, NOTE_WAKE_UP, NOTE_RESUME])
def test_each_way_to_say_so_is_seen_also_if_it_fails_half_way(patch):
    front = Late(REAL)

    async def original(self, *arguments):
        if arguments:
            raise RuntimeError(arguments[0])
        return "done"

    command = patch.wrapper(original)
    assert asyncio.run(command(front)) == "done"
    with pytest.raises(RuntimeError, match="half-way"):
        asyncio.run(command(front, "half-way"))
    assert front.canary._changes == 2


def test_an_engine_without_a_recorder_is_left_alone():
    async def original(self):
        return "done"

    engine = SimpleNamespace(output_processor=SimpleNamespace())

    assert asyncio.run(NOTE_COMMAND.wrapper(original)(engine)) == "done"
