"""The client library and the command, against the real store."""

import asyncio
import json

import numpy as np
import pytest
from support.frames import make_conversation, make_upload
from typer.testing import CliRunner

from routereplay.cli.app import app
from routereplay.client import AsyncRouteStoreClient, RouteStoreClient, stitch
from routereplay.wire import normalize_id
from routereplay.wire.errors import NotFound, RoutesDeleted, RoutesDropped


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_conversation_is_fetched_and_stitched_by_both_clients(store):
    turns = [store.put(upload) for upload in make_conversation("clients", turns=3, seed=50)]
    tokens = turns[-1].token_ids

    async def fetch():
        async with AsyncRouteStoreClient(store.sidecar.url) as client:
            return await client.fetch_trajectories(["clients"])

    with RouteStoreClient(store.sidecar.url) as client:
        blocking = client.fetch_trajectory("clients")
    (awaited,) = asyncio.run(fetch())

    for trajectory in (blocking, awaited):
        stitched = stitch(trajectory, tokens)
        assert np.flatnonzero(stitched.missing).tolist() == [len(tokens) - 1]
        for index, turn in enumerate(turns):
            mine = stitched.source == index
            assert np.array_equal(stitched.experts[mine], turn.experts[mine[: len(turn.experts)]])


def test_each_row_of_a_conversation_is_sent_once(store):
    for upload in make_conversation("once", turns=4, seed=51):
        store.put(upload)

    with RouteStoreClient(store.sidecar.url) as client:
        trajectory = client.fetch_trajectory("once")

    rows = sum(len(turn.experts) for turn in trajectory.turns)
    assert rows == len(trajectory.turns[-1].token_ids) - 1


def test_what_the_store_refuses_reaches_the_caller_as_its_own_error(store):
    lost, gone = make_upload("client-lost", seed=52), store.put(make_upload("client-gone", seed=53))
    store.post(lost.drop_frame("queue_full"))

    with RouteStoreClient(store.sidecar.url) as client:
        client.delete_request(gone.manifest.request_id)
        with pytest.raises(NotFound):
            client.fetch_request("client-never")
        with pytest.raises(RoutesDropped, match="queue_full"):
            client.fetch_request("client-lost")
        with pytest.raises(RoutesDeleted):
            client.fetch_request("client-gone")
        with pytest.raises(RoutesDropped, match=r"2 of the ids .*client-lost.*client-never"):
            client.fetch_requests(["client-lost", "client-never"])


def test_get_prints_a_summary_and_saves_arrays(store, tmp_path):
    upload = store.put(make_upload("command", seed=54))
    url = store.sidecar.url

    shown = run("get", "command", "--store", url)
    saved = run("get", "command", "--store", url, "--output", tmp_path / "routes.npz")

    assert shown.exit_code == saved.exit_code == 0
    assert "command  choice 0" in shown.output
    arrays = np.load(tmp_path / "routes.npz")
    assert np.array_equal(arrays["experts_0"], upload.experts)


def test_get_cuts_as_it_is_told(store):
    upload = store.put(make_upload("command-cut", seed=56))
    cut = ("--layers", "1:3", "--tokens", "5:", "--json")

    answer = run("get", "command-cut", *cut, "--store", store.sidecar.url)

    (record,) = json.loads(answer.stdout)["records"]
    assert [layer["layer"] for layer in record["layers"]] == [1, 2]
    assert (record["token_start"], record["token_stop"]) == (5, len(upload.experts))


def test_what_is_there_is_listed(store):
    for upload in make_conversation("command-listed", turns=2, seed=57):
        store.put(upload)
    url = store.sidecar.url

    requests, trajectories = run("ls", "--store", url), run("trajectories", "--store", url)
    as_json = json.loads(run("trajectories", "-n", "1", "--json", "--store", url).stdout)

    assert requests.output.splitlines()[1].startswith("command-listed-turn-1  command-listed ")
    assert trajectories.output.splitlines()[1].split()[:3] == ["command-listed", "2/2", "complete"]
    (listed,) = as_json["trajectories"]
    assert (listed["trajectory_id"], listed["turns"]) == ("command-listed", 2)


def test_many_ids_are_got_at_once(store, tmp_path):
    uploads = [store.put(make_upload(f"many-{i}", seed=60 + i)) for i in range(3)]
    ids = [upload.manifest.request_id for upload in uploads]

    run("get", *ids, "--output", tmp_path / "many.npz", "--store", store.sidecar.url)

    arrays = np.load(tmp_path / "many.npz")
    for index, upload in enumerate(uploads):
        assert np.array_equal(arrays[f"experts_{index}"], upload.experts)


def test_bench_measures_and_leaves_nothing_behind(store):
    size = ("--shape", "4x2x300", "--tokens", 300, "--records", 6)

    answer = run("bench", *size, "--json", "--store", store.sidecar.url)

    found = json.loads(answer.stdout)
    assert {name: phase["calls"] for name, phase in found.items()} == dict.fromkeys(found, 6)
    assert found["fetch"]["bytes_per_s"] > 0
    assert not [r for r in store.get("/v1/requests").json()["requests"] if "bench" in r["model"]]


def test_get_says_what_is_wrong_and_fails(store):
    answer = run("get", "never-seen", "--store", store.sidecar.url)

    assert answer.exit_code == 1
    assert "not_found: " in answer.output


def test_doctor_reports_the_store_as_json(store):
    good = run("doctor", "--json", "--store", store.sidecar.url)
    bad = run("doctor", "--json", "--store", "http://127.0.0.1:9")

    def state(answer, check):
        findings = json.loads(answer.stdout)["findings"]
        return next(found["state"] for found in findings if found["check"] == check)

    assert (state(good, "store"), state(good, "clock")) == ("ok", "ok")
    assert state(bad, "store") == "failed"
    assert bad.exit_code == 1


def test_an_id_that_is_no_key_is_found_under_the_text_that_the_client_sent(store):
    text = "{tag}/../a b"
    upload = store.put(make_upload(normalize_id(text), seed=55))

    with RouteStoreClient(store.sidecar.url) as client:
        routes = client.fetch_request(text)

    assert np.array_equal(routes.experts, upload.experts)
