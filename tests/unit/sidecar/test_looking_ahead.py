"""What a batch was told of its ids is for that batch, and for its first look alone."""

import asyncio

from routereplay.sidecar.lookup import Lookup
from routereplay.sidecar.store.base import Entry, RecordKey, RecordStatus

TAG = "default/t:talk"


def status(state):
    return RecordStatus(RecordKey(TAG, "turn", 0), state, Entry(), "upload", None)


class Engine:
    """An index in which one trajectory is pending at first, and sealed later."""

    def __init__(self):
        self.state, self.looks = "pending", 0

    async def ahead(self, names, tags):
        assert names == ["default/i:turn"]
        assert tags == [TAG]
        self.looks += 1
        return {one: [status(self.state)] for one in [*names, *tags]}

    async def trajectory(self, tag):
        self.looks += 1
        return [status(self.state)]

    named = trajectory


def test_the_first_look_costs_nothing_and_the_next_sees_what_is_there_now():
    async def look():
        batch = await Lookup(engine, "default").ahead(["turn"], ["talk"])
        engine.state = "sealed"
        return [(await batch.trajectory("talk"))[0].state for _ in range(2)], engine.looks

    engine = Engine()

    assert asyncio.run(look()) == (["pending", "sealed"], 2)


def test_nobody_else_is_told_what_a_batch_was_told():
    async def look():
        lookup = Lookup(engine, "default")
        await lookup.ahead(["turn"], ["talk"])
        engine.state = "deleted"
        return (await lookup.trajectory("talk"))[0].state, (await lookup.request("turn"))[0].state

    engine = Engine()

    assert asyncio.run(look()) == ("deleted", "deleted")
