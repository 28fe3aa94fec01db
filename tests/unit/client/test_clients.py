"""Both clients and a real server: what they ask, retry, verify and raise."""

import asyncio
import json
import time

import httpx
import numpy as np
import pytest
from support.answers import problem, routes_frame
from support.http_server import serving
from support.trajectories import conversation, trajectory

from routereplay.client import AsyncRouteStoreClient, RouteStoreClient
from routereplay.wire import errors
from routereplay.wire.records import FetchFailure


class Blocking:
    """`RouteStoreClient` under test."""

    def __init__(self, handler, **options):
        self.handler = handler
        self.options = options

    def __call__(self, method, *arguments, **options):
        with serving(self.handler) as url, RouteStoreClient(url, **self.options) as client:
            return getattr(client, method)(*arguments, **options)


class Asynchronous(Blocking):
    """`AsyncRouteStoreClient` under test, behind the same face."""

    def __call__(self, method, *arguments, **options):
        async def run(url):
            async with AsyncRouteStoreClient(url, **self.options) as client:
                return await getattr(client, method)(*arguments, **options)

        with serving(self.handler) as url:
            return asyncio.run(run(url))


@pytest.fixture(params=[Blocking, Asynchronous], ids=["blocking", "async"])
def client(request):
    return request.param


@pytest.fixture
def episode():
    return trajectory(*conversation((3, 2), (1, 2))[0])


def test_a_request_is_asked_for_with_its_slices(client, episode):
    asked = []

    def handler(request):
        asked.append(request)
        return httpx.Response(200, content=routes_frame([episode]))

    routes = client(handler)(
        "fetch_request", "chatcmpl-0", choice=1, layers=range(1, 3), tokens=range(4), wait_s=2.5
    )

    (request,) = asked
    assert request.url.path == "/v1/requests/chatcmpl-0/routes"
    assert dict(request.url.params) == {
        "choice": "1", "layers": "1:3", "tokens": "0:4", "wait": "2.5",
    }  # fmt: skip
    assert np.array_equal(routes.experts, episode.turns[0].experts)
    with pytest.raises(ValueError, match="read-only"):
        routes.experts[0] = 1


def test_ids_that_cannot_be_a_path_are_normalized_as_the_recorder_does(client, episode):
    asked = []

    def handler(request):
        asked.append(request.url.path)
        return httpx.Response(200, content=routes_frame([episode]))

    client(handler)("fetch_trajectory", "../../admin?x=1")

    assert asked[0].startswith("/v1/trajectories/h.")


def test_many_trajectories_come_in_the_order_asked_for_and_in_batches(client):
    episodes = {
        f"t{i}": trajectory(*conversation((3, 2), first_token=i)[0], trajectory_id=f"t{i}")
        for i in range(20)
    }
    sizes = []

    def handler(request):
        ids = json.loads(request.content)["trajectories"]
        sizes.append(len(ids))
        return httpx.Response(200, content=routes_frame([episodes[i] for i in reversed(ids)]))

    wanted = sorted(episodes, reverse=True)
    fetched = client(handler)("fetch_trajectories", wanted, progress=True)

    assert [one.trajectory_id for one in fetched] == wanted
    assert sizes == [16, 4]


def test_one_error_names_every_id_that_failed(client, episode):
    failures = [
        FetchFailure(id="t1", code="pending", message="not sealed"),
        FetchFailure(id="t2", code="dropped", message="queue_full"),
    ]

    def handler(request):
        return httpx.Response(200, content=routes_frame([episode], failures))

    with pytest.raises(errors.RoutesPending, match="2 of the ids .*t1: pending.*t2: dropped"):
        client(handler)("fetch_trajectories", ["episode-0", "t1", "t2"])


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("not_found", 404, errors.NotFound),
        ("expired", 404, errors.RoutesExpired),
        ("dropped", 404, errors.RoutesDropped),
        ("corrupt", 502, errors.CorruptRecord),
    ],
)
def test_what_the_store_refuses_is_raised_as_its_own_error(client, code, status, kind):
    calls = []

    def handler(request):
        calls.append(1)
        return httpx.Response(status, content=problem(code, "what happened", reason="r"))

    with pytest.raises(kind, match="what happened") as caught:
        client(handler)("fetch_request", "chatcmpl-0")
    assert caught.value.details == {"reason": "r"}
    assert len(calls) == 1


def test_an_answer_that_is_no_problem_document_is_still_a_store_error(client):
    def handler(request):
        return httpx.Response(500, content=b"<html>proxy</html>")

    with pytest.raises(errors.RouteStoreError, match="answered 500 .*proxy"):
        client(handler)("fetch_request", "chatcmpl-0")


def test_a_busy_store_is_asked_again(client, episode):
    answers = [
        httpx.Response(503, content=problem("unavailable")),
        httpx.Response(503, content=problem("store_full")),
        httpx.Response(200, content=routes_frame([episode])),
    ]

    assert client(lambda request: answers.pop(0))("fetch_trajectory", "episode-0").turns
    assert not answers


def test_an_answer_that_was_damaged_on_its_way_is_asked_for_again(client, episode):
    body = routes_frame([episode])
    damaged = bytearray(body)
    damaged[body.index(episode.turns[0].experts.tobytes())] ^= 1
    answers = [
        httpx.Response(200, content=content)
        for content in (bytes(damaged), body[:-64], b"<html>proxy</html>", body)
    ]
    fetched = client(lambda request: answers.pop(0))("fetch_requests", ["chatcmpl-0"])

    assert np.array_equal(fetched[0].experts, episode.turns[0].experts)
    assert not answers


def test_a_store_is_left_alone_for_as_long_as_it_asks(client, episode):
    times = []

    def handler(request):
        times.append(time.monotonic())
        if len(times) == 1:
            headers = {"Retry-After": "1"}
            return httpx.Response(503, content=problem("unavailable"), headers=headers)
        return httpx.Response(200, content=routes_frame([episode]))

    client(handler)("fetch_trajectory", "episode-0")

    assert times[1] - times[0] >= 1.0


def test_no_try_begins_after_the_deadline(client):
    def handler(request):
        headers = {"Retry-After": "30"}
        return httpx.Response(503, content=problem("unavailable"), headers=headers)

    began = time.monotonic()
    with pytest.raises(errors.StoreUnavailable):
        client(handler, attempts=100, deadline_s=1.0)("fetch_request", "chatcmpl-0")

    assert time.monotonic() - began < 5


def test_a_hook_takes_what_is_missing_and_the_rest_is_returned(client, episode):
    failures = [FetchFailure(id="t1", code="expired", message="gone")]
    missing = []

    def handler(request):
        return httpx.Response(200, content=routes_frame([episode], failures))

    found = client(handler)("fetch_trajectories", ["episode-0", "t1"], on_missing=missing.append)

    assert [one.trajectory_id for one in found] == ["episode-0"]
    assert [(one.id, one.code) for one in missing] == [("t1", "expired")]


def test_a_store_that_is_away_raises_after_the_last_attempt(client):
    calls = []

    def handler(request):
        calls.append(1)
        raise httpx.ConnectError("refused")

    with pytest.raises(errors.StoreUnreachable, match="Is `routereplay serve` running there"):
        client(handler, attempts=3)("fetch_request", "chatcmpl-0")
    assert len(calls) == 3


def test_a_silent_store_is_a_timeout(client):
    def handler(request):
        raise httpx.ReadTimeout("slow")

    with pytest.raises(errors.StoreTimeout, match="did not answer in time"):
        client(handler, attempts=1, timeout_s=0.2)("fetch_request", "chatcmpl-0")


@pytest.mark.parametrize("where", ["rows", "tokens"])
def test_bytes_that_changed_on_the_way_are_corrupt(client, episode, where):
    body = bytearray(routes_frame([episode]))
    turn = episode.turns[0]
    array = turn.experts if where == "rows" else turn.token_ids
    position = bytes(body).index(array.tobytes())
    body[position] ^= 1

    with pytest.raises(errors.CorruptRecord, match="chatcmpl-0 choice 0"):
        client(lambda request: httpx.Response(200, content=bytes(body)))(
            "fetch_request", "chatcmpl-0"
        )


def test_keys_travel_as_bearer_tokens(client, episode, monkeypatch, tmp_path):
    seen = []

    def handler(request):
        seen.append(request.headers.get("authorization"))
        return httpx.Response(200, content=routes_frame([episode]))

    client(handler)("fetch_request", "a")
    client(handler, api_key="argument")("fetch_request", "a")
    monkeypatch.setenv("ROUTEREPLAY_API_KEY", "environment")
    client(handler)("fetch_request", "a")
    (tmp_path / "key").write_text("file\n")
    monkeypatch.setenv("ROUTEREPLAY_API_KEY_FILE", str(tmp_path / "key"))
    client(handler)("fetch_request", "a")

    assert seen == [None, "Bearer argument", "Bearer environment", "Bearer file"]


def test_manifests_and_deletes_use_their_paths(client):
    asked = []

    def handler(request):
        asked.append((request.method, request.url.path))
        return httpx.Response(200, content=b"{}")

    for method in ("get_request", "get_trajectory", "delete_request", "delete_trajectory"):
        client(handler)(method, "x")

    assert asked == [
        ("GET", "/v1/requests/x"),
        ("GET", "/v1/trajectories/x"),
        ("DELETE", "/v1/requests/x"),
        ("DELETE", "/v1/trajectories/x"),
    ]


def test_a_slice_with_a_step_is_refused(client):
    with pytest.raises(ValueError, match="step 1"):
        client(lambda request: None)("fetch_request", "x", layers=range(0, 8, 2))


def test_answers_are_received_into_the_memory_that_is_given(client):
    episodes = [
        trajectory(*conversation((3, 2), first_token=i)[0], trajectory_id=f"t{i}")
        for i in range(20)
    ]
    by_id = {episode.trajectory_id: episode for episode in episodes}

    def handler(request):
        ids = json.loads(request.content)["trajectories"]
        return httpx.Response(200, content=routes_frame([by_id[i] for i in ids]))

    out = np.zeros(1 << 20, np.uint8)
    fetched = client(handler)("fetch_trajectories", list(by_id), out=out)

    for one in fetched:
        for turn, expected in zip(one.turns, by_id[one.trajectory_id].turns, strict=True):
            assert np.array_equal(turn.experts, expected.experts)
            assert np.shares_memory(turn.experts, out)
            assert not turn.experts.flags.writeable
    with pytest.raises(ValueError, match="out= holds 100 bytes, of which 0 are used"):
        client(handler)("fetch_trajectories", list(by_id), out=np.zeros(100, np.uint8))
    with pytest.raises(ValueError, match="read-only"):
        client(handler)("fetch_trajectories", list(by_id), out=b"")
