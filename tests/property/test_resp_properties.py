"""Replies of an engine come in any pieces; each string lands in its place or nowhere."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis import exceptions as refusals

from routereplay.sidecar.store.resp import RespConnection, packed

REPLIES = st.one_of(
    st.binary(max_size=40_000).map(lambda value: (b"$%d\r\n%s\r\n" % (len(value), value), value)),
    st.just((b"$-1\r\n", None)),
    st.just((b"+OK\r\n", b"OK")),
    st.integers(-5, 5).map(lambda n: (b":%d\r\n" % n, n)),
    st.just((b"-OOM no\r\n", "OOM no")),
)


class Transport(asyncio.Transport):
    """Takes everything and says nothing."""

    def __init__(self):
        super().__init__()
        self.sent = []
        self.aborted = False

    def writelines(self, pieces):
        self.sent += pieces

    def abort(self):
        self.aborted = True

    def is_closing(self):
        return self.aborted


def exchange(received, places, sizes=(1 << 20,)):
    """What `call` returns when an engine sends `received` in pieces of `sizes`, over and over."""

    async def run():
        connection = RespConnection()
        transport = Transport()
        connection.connection_made(transport)
        task = asyncio.create_task(connection.call([[b"PING"]] * len(places), places))
        await asyncio.sleep(0)
        at = turn = 0
        while at < len(received) and not transport.aborted:
            place = connection.get_buffer(-1)
            step = min(len(place), sizes[turn % len(sizes)], len(received) - at)
            place[:step] = received[at : at + step]
            connection.buffer_updated(step)
            at, turn = at + step, turn + 1
        try:
            return await task
        finally:
            assert connection.is_open == (not task.exception())

    return asyncio.run(run())


@given(
    st.lists(REPLIES, min_size=1, max_size=6),
    st.lists(st.integers(1, 20_000), min_size=1),
    st.data(),
)
def test_replies_in_any_pieces_are_the_same_replies(replies, sizes, data):
    places = []
    for _, value in replies:
        fits = isinstance(value, bytes) and data.draw(st.booleans())
        places.append(memoryview(bytearray(len(value) if fits else 7)) if fits else None)
    found = exchange(b"".join(sent for sent, _ in replies), places, sizes)

    for (sent, value), place, reply in zip(replies, places, found, strict=True):
        if sent.startswith(b"$") and value is not None:
            assert reply == len(value)
            assert place is None or bytes(place) == value
        elif isinstance(value, str):
            assert isinstance(reply, refusals.ResponseError)
            assert str(reply) == value
        else:
            assert reply == value


@pytest.mark.parametrize("garbage", [b"*1\r\n", b"HTTP/1.1 400\r\n", b"x" * 20_000])
def test_what_is_no_reply_breaks_the_connection(garbage):
    with pytest.raises(refusals.InvalidResponse):
        exchange(garbage, [None])


def test_long_arguments_are_sent_from_where_they_are():
    value = memoryview(bytes(100_000))
    pieces = packed([b"SET", b"key", value, b"EX", b"5"])

    assert any(piece is value for piece in pieces)
    assert b"".join(pieces) == (
        b"*5\r\n$3\r\nSET\r\n$3\r\nkey\r\n$100000\r\n"
        + bytes(100_000)
        + b"\r\n$2\r\nEX\r\n$1\r\n5\r\n"
    )
