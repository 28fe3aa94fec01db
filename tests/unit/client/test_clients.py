"""Both clients and a real server: what they ask, retry, verify and raise."""

import asyncio
import contextlib
import dataclasses
import json
import socket
import threading
import time

import httpx
import msgspec
import numpy as np
import pytest
from support.answers import problem, routes_frame
from support.http_server import serving
from support.trajectories import conversation, trajectory

from routereplay.client import AsyncRouteStoreClient, RouteStoreClient
from routereplay.client._retry import retry_after_s
from routereplay.wire import errors
from routereplay.wire.records import FetchFailure


class Blocking:
    """`RouteStoreClient` under test."""

    def __init__(self, handler, **options):
        self.handler = handler
        self.options = options
        self.user = ""

    def __call__(self, method, *arguments, **options):
        with serving(self.handler) as url:
            return self.at(url.replace("//", f"//{self.user}"), method, *arguments, **options)

    def at(self, url, method, *arguments, **options):
        with RouteStoreClient(url, **self.options) as client:
            return getattr(client, method)(*arguments, **options)


class Asynchronous(Blocking):
    """`AsyncRouteStoreClient` under test, behind the same face."""

    def at(self, url, method, *arguments, **options):
        async def run():
            async with AsyncRouteStoreClient(url, **self.options) as client:
                return await getattr(client, method)(*arguments, **options)

        return asyncio.run(run())


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
        "fetch_request", "chatcmpl-0", choice=0, layers=range(1, 3), tokens=range(4), wait_s=2.5
    )

    (request,) = asked
    assert request.url.path == "/v1/requests/chatcmpl-0/routes"
    assert dict(request.url.params) == {
        "choice": "0", "layers": "1:3", "tokens": "0:4", "wait": "2.5",
    }  # fmt: skip
    assert np.array_equal(routes.experts, episode.turns[0].experts)
    with pytest.raises(ValueError, match="read-only"):
        routes.experts[0] = 1


def test_ids_that_cannot_be_a_path_are_normalized_as_the_recorder_does(client, episode):
    asked = []

    def handler(request):
        asked.append(request.url.path)
        name = request.url.path.split("/")[3]
        named = dataclasses.replace(episode, trajectory_id=name)
        return httpx.Response(200, content=routes_frame([named]))

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


@pytest.mark.parametrize(
    "body",
    [
        b'{"code": "not_found", "message": "gone", "details": {"message": "another", "self": 1}}',
        b'{"code": "not_found", "message": "gone", "details": ["no", "object"]}',
        b'{"code": ["not_found"], "message": {"gone": 1}}',
        b'{"detail": "Not Found"}',
        b"[]",
    ],
)
def test_a_problem_document_of_any_shape_is_a_store_error(client, body):
    with pytest.raises(errors.RouteStoreError, match=r"gone|Not Found|\[\]"):
        client(lambda request: httpx.Response(404, content=body))("fetch_request", "chatcmpl-0")


def test_a_refusal_is_read_only_as_far_as_it_can_mean_anything(client):
    """Of two mebibytes that are followed by silence, the first says what is wrong."""
    head = b"HTTP/1.1 500 Error\r\nTransfer-Encoding: chunked\r\n\r\n900000\r\n<html>"
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def run():
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                connection.recv(65536)
                connection.sendall(head + bytes(2 << 20))
                connection.recv(1)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        make = client(None, attempts=1, timeout_s=3.0)
        with pytest.raises(errors.RouteStoreError, match="answered 500 .*html") as caught:
            make.at(f"http://127.0.0.1:{listener.getsockname()[1]}", "fetch_request", "a")
        thread.join(10)
    assert len(caught.value.message) < 2000


def test_nobody_is_asked_to_compress_what_lands_in_place(client, episode):
    asked = []

    def handler(request):
        asked.append(request.headers.get("Accept-Encoding", "identity"))
        return httpx.Response(200, content=routes_frame([episode]))

    client(handler)("fetch_request", "chatcmpl-0")

    assert asked == ["identity"]


def test_a_password_in_the_address_is_not_told_nor_sent(client, episode):
    asked = []

    def handler(request):
        asked.append(request.headers.get("Authorization"))
        return httpx.Response(200, content=routes_frame([episode]))

    make = client(handler, api_key="key")
    make.user = "anna:secret@"
    make("fetch_request", "chatcmpl-0")
    assert asked == ["Bearer key"]

    def hang_up(request):
        raise httpx.ConnectError("refused")

    away = client(hang_up, attempts=1)
    away.user = "anna:secret@"
    with pytest.raises(errors.StoreUnreachable) as caught:
        away("fetch_request", "chatcmpl-0")
    assert "secret" not in f"{caught.value} {caught.value.details}"


@pytest.mark.parametrize("asked", [("chatcmpl-7", 0), ("chatcmpl-0", 3)])
def test_routes_of_another_record_are_no_answer(client, episode, asked):
    request_id, choice = asked
    answers = []

    def handler(request):
        answers.append(1)
        return httpx.Response(200, content=routes_frame([episode]))

    with pytest.raises(errors.MalformedFrame, match="chatcmpl-0 choice 0 where"):
        client(handler, attempts=2)("fetch_request", request_id, choice=choice)
    with pytest.raises(errors.MalformedFrame, match="chatcmpl-0 choice 0 where"):
        client(handler, attempts=1)("fetch_requests", [asked])
    with pytest.raises(errors.MalformedFrame, match="episode-0 where"):
        client(handler, attempts=1)("fetch_trajectory", "episode-7")
    assert len(answers) == 4


def test_a_request_is_found_under_its_alias(client, episode):
    turn = episode.turns[0]
    manifest = msgspec.structs.replace(turn.manifest, aliases=("mine",))
    named = dataclasses.replace(turn, manifest=manifest)
    body = routes_frame([dataclasses.replace(episode, turns=(named,))])
    found = client(lambda request: httpx.Response(200, content=body))("fetch_request", "mine")

    assert found.manifest.request_id == "chatcmpl-0"


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
    fetched = client(lambda request: answers.pop(0))("fetch_requests", ["chatcmpl-0", "chatcmpl-1"])

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

    client(handler)("fetch_request", "chatcmpl-0")
    client(handler, api_key="argument")("fetch_request", "chatcmpl-0")
    monkeypatch.setenv("ROUTEREPLAY_API_KEY", "environment")
    client(handler)("fetch_request", "chatcmpl-0")
    (tmp_path / "key").write_text("file\n")
    monkeypatch.setenv("ROUTEREPLAY_API_KEY_FILE", str(tmp_path / "key"))
    client(handler)("fetch_request", "chatcmpl-0")

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


@pytest.mark.parametrize(("header", "seconds"), [("2", 2.0), ("\xb2", 0.0), ("-1", 0.0), (None, 0)])
def test_a_wait_that_is_no_number_is_none(header, seconds):
    assert retry_after_s(header) == seconds
