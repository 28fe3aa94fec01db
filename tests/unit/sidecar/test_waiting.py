"""A wait looks again until something is there, time is up, or nobody waits any more."""

import asyncio
import time

import pytest

from routereplay.sidecar.lookup import wait_for
from routereplay.wire.errors import NotFound, RoutesDropped, RoutesPending


class Looks:
    """Answers in turn; the last one again and again."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.count = 0

    async def __call__(self):
        self.count += 1
        answer = self.answers[min(self.count, len(self.answers)) - 1]
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_what_is_there_is_returned_at_once():
    look = Looks("found")

    assert asyncio.run(wait_for(look, wait_s=0)) == "found"
    assert look.count == 1


def test_pending_and_unknown_are_waited_for():
    look = Looks(NotFound("no"), RoutesPending("soon"), "found")

    assert asyncio.run(wait_for(look, wait_s=5)) == "found"


def test_time_ends_it_with_the_last_error():
    started = time.monotonic()
    with pytest.raises(RoutesPending):
        asyncio.run(wait_for(Looks(RoutesPending("soon")), wait_s=0.2))

    assert 0.2 <= time.monotonic() - started < 2


def test_the_engine_is_not_asked_in_a_hurry():
    look = Looks(RoutesPending("soon"))
    with pytest.raises(RoutesPending):
        asyncio.run(wait_for(look, wait_s=0.5))

    assert look.count <= 9


def test_what_cannot_get_better_is_not_waited_for():
    look = Looks(RoutesDropped("gone"))
    with pytest.raises(RoutesDropped):
        asyncio.run(wait_for(look, wait_s=5))

    assert look.count == 1


def test_what_is_not_done_in_time_is_returned_as_it_is():
    found = asyncio.run(wait_for(Looks("partial"), wait_s=0.1, done=lambda value: value == "whole"))

    assert found == "partial"


def test_a_client_that_left_ends_it():
    async def gone():
        return True

    look = Looks(NotFound("no"))
    with pytest.raises(NotFound):
        asyncio.run(wait_for(look, wait_s=30, gone=gone))

    assert look.count == 1
