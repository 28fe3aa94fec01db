"""Looks at many at once: for whom they are, and how many of them the engine does in one go."""

import asyncio

import msgspec

from routereplay.sidecar.lookup import Lookup
from routereplay.sidecar.store.base import Entry, RecordKey, RecordStatus
from routereplay.sidecar.store.redis_looks import Looks

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


def test_a_long_trajectory_is_looked_at_page_by_page():
    names = [b"turn-%03d" % number for number in range(300)]
    pages = []
    noted = b"deleted upload " + msgspec.msgpack.encode(Entry())

    class Commands:
        together = True

        async def run(self, *commands):
            assert [command[0] for command in commands] == ["SMEMBERS"]
            return [names]

        async def script(self, name, keys, arguments):
            asked = [one.encode() for one in arguments[6:]]
            pages.append(len(asked))
            if not asked:
                return [TAG.encode(), len(names)]
            fields = [[one, b"0", noted, None, None, None] for one in asked]
            return [TAG.encode(), *(field for one in fields for field in one)]

        async def scripts(self, calls):
            return [await self.script(*call) for call in calls]

    looks = Looks(Commands())
    found = asyncio.run(looks.trajectory(TAG))

    assert [one.key.request_id.encode() for one in found] == names
    assert pages == [0, 256, 44]
    assert asyncio.run(looks.ahead([], [TAG, TAG])) == {}
