"""G1 to G6: what a trainer meets, against a real store."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from support.frames import make_upload
from support.route_store import running_store
from support.store_processes import until
from support.toxic_proxy import ToxicProxy, Toxics

from routereplay.client import (
    AsyncRouteStoreClient,
    ModelShape,
    RouteStoreClient,
    Trajectory,
    pack_thd,
)
from routereplay.wire import errors


def same(routes, upload):
    """Whether a client returned what was stored."""
    return np.array_equal(routes.experts, upload.experts) and np.array_equal(
        routes.token_ids, upload.token_ids
    )


def check(verdict, client, uploads):
    """Fill in a verdict by reading everything back."""
    verdict.acked += len(uploads)
    for upload in uploads:
        try:
            fetched = client.fetch_request(upload.manifest.request_id)
        except errors.RouteReplayError:
            verdict.lost += 1
        else:
            verdict.wrong += not same(fetched, upload)


@pytest.mark.fault(
    "G1", "routes are asked for before they are sealed", injected="order", short=True
)
def test_g1_a_reader_waits_for_the_seal_and_not_longer(verdict, store):
    upload = make_upload("g1", seed=1)
    store.post(upload.chunk_frame(0))
    with RouteStoreClient(store.sidecar.url) as client:
        with pytest.raises(errors.RoutesPending):
            client.fetch_request("g1")
        began = time.monotonic()
        with pytest.raises(errors.RoutesPending):
            client.fetch_request("g1", wait_s=0.7)
        waited = time.monotonic() - began
        seal = threading.Timer(0.5, lambda: store.put(upload))
        seal.start()
        began = time.monotonic()
        assert same(client.fetch_request("g1", wait_s=30), upload)
        verdict.recovery_s = time.monotonic() - began - 0.5
        seal.join()
        check(verdict, client, [upload])
    assert 0.6 < waited < 5
    verdict.note = f"waits {waited:.1f} s of 0.7 s for what does not come"


@pytest.mark.fault("G2", "eight ranks fetch one step while the store restarts", injected="SIGTERM")
def test_g2_eight_ranks_read_through_a_restart(verdict, tmp_path):
    with running_store("embedded", tmp_path) as store:
        uploads = [make_upload(f"g2-{n}", seed=n, prompt_len=400, topk=8) for n in range(64)]
        for upload in uploads:
            store.put(upload)
        ids = [upload.manifest.request_id for upload in uploads]
        with ToxicProxy(store.sidecar.port) as proxy:
            started = threading.Barrier(9)

            def rank(_):
                with RouteStoreClient(proxy.url, attempts=50, deadline_s=60) as client:
                    started.wait()
                    rounds = [client.fetch_requests(ids) for _ in range(6)]
                return rounds

            with ThreadPoolExecutor(8) as pool:
                ranks = [pool.submit(rank, number) for number in range(8)]
                started.wait()
                store.sidecar.stop()
                began = time.monotonic()
                store.sidecar.start()
                until(store.sidecar.is_ready, 30)
                verdict.recovery_s = time.monotonic() - began
                fetched = [rank.result(120) for rank in ranks]
        for rounds in fetched:
            for routes in rounds:
                verdict.acked += len(uploads)
                verdict.lost += len(uploads) - len(routes)
                verdict.wrong += sum(
                    not same(one, upload) for one, upload in zip(routes, uploads, strict=True)
                )
        verdict.load = "8 clients, 64 records of 0.2 MB, 6 times"
        verdict.note = f"{proxy.connections} connections in all"


@pytest.mark.fault("G3", "the trainer and the store restart", injected="SIGKILL", short=True)
def test_g3_what_is_read_again_is_the_same(verdict, tmp_path):
    with running_store("embedded", tmp_path) as store:
        uploads = [store.put(make_upload(f"g3-{n}", seed=n)) for n in range(10)]
        with RouteStoreClient(store.sidecar.url) as client:
            check(verdict, client, uploads)
        store.sidecar.signal(9)
        store.sidecar.wait()
        store.sidecar.start()
        until(store.sidecar.is_ready, 30)
        with RouteStoreClient(store.sidecar.url) as client:
            check(verdict, client, uploads)


@pytest.mark.fault("G4", "the time to live ends in the middle of a step", injected="TTL of 60 s")
def test_g4_what_expired_says_so_and_the_hook_decides(verdict, tmp_path):
    with running_store("embedded", tmp_path, ttl_s=60) as store:
        old = store.put(make_upload("g4-old", seed=1))
        kept = store.put(make_upload("g4-kept", seed=2))
        for key in store.engine.scan_iter("rr:*"):
            # Time passes for the values of one of them.
            if b"g4-old" in key and b":s" not in key and store.engine.ttl(key) <= 120:
                store.engine.delete(key)
        missing = []
        with RouteStoreClient(store.sidecar.url) as client:
            with pytest.raises(errors.RouteReplayError) as caught:
                client.fetch_request("g4-old")
            found = client.fetch_requests(["g4-old", "g4-kept"], on_missing=missing.append)
            check(verdict, client, [kept])
        assert caught.value.code == "expired"
        assert [failure.id for failure in missing] == ["g4-old"]
        assert len(found) == 1
        assert same(found[0], kept)
        assert not same(found[0], old)


@pytest.mark.fault("G5", "a client is used after its end and on another loop", injected="misuse")
def test_g5_misuse_is_an_error_and_never_a_hang(verdict, store):
    upload = store.put(make_upload("g5", seed=5))
    closed = RouteStoreClient(store.sidecar.url)
    closed.close()
    with pytest.raises(RuntimeError, match="closed"):
        closed.fetch_request("g5")
    held = AsyncRouteStoreClient(store.sidecar.url)
    assert same(asyncio.run(held.fetch_request("g5")), upload)
    with pytest.raises(RuntimeError, match="another event loop"):
        asyncio.run(held.fetch_request("g5"))
    with RouteStoreClient(store.sidecar.url) as shared, ThreadPoolExecutor(8) as pool:
        fetched = list(pool.map(lambda _: shared.fetch_request("g5"), range(64)))
        verdict.acked = len(fetched)
        verdict.wrong = sum(not same(routes, upload) for routes in fetched)
    verdict.load = "8 threads share a client"


@pytest.mark.fault("G6", "routes of another model", injected="metadata", short=True)
def test_g6_routes_of_another_model_never_reach_training(verdict, store):
    upload = store.put(make_upload("g6", seed=6, trajectory_id="g6t", num_layers=4, topk=2))
    tokens = upload.token_ids
    with RouteStoreClient(store.sidecar.url) as client:
        episode = client.fetch_trajectory("g6t")
        check(verdict, client, [upload])
    assert isinstance(episode, Trajectory)
    bounds = [0, len(tokens)]
    assert pack_thd([episode], tokens, cu_seqlens=bounds, model=ModelShape(4, 2, 60)) is not None
    for other in (ModelShape(5, 2, 60), ModelShape(4, 3, 60), ModelShape(4, 2, 64)):
        with pytest.raises(errors.RouteReplayError):
            pack_thd([episode], tokens, cu_seqlens=bounds, model=other)


@pytest.mark.fault("B5", "an answer is cut at byte k", injected="a proxy", short=True)
def test_b5_a_cut_answer_is_never_taken_for_a_short_one(verdict, store, proxy):
    upload = store.put(make_upload("b5", seed=7))
    length = len(store.get("/v1/requests/b5/routes").content) + 200
    positions = range(0, length, 83)
    cut = 0
    for position in positions:
        proxy.toxics = Toxics(cut_response_at=position)
        with RouteStoreClient(proxy.url, attempts=1) as client:
            try:
                verdict.wrong += not same(client.fetch_request("b5"), upload)
            except (errors.TransportError, errors.WireError):
                cut += 1
        proxy.toxics, proxy.struck = Toxics(cut_response_at=position, once=True), 0
        with RouteStoreClient(proxy.url) as client:
            check(verdict, client, [upload])
    assert cut > 0.8 * len(positions)
    verdict.load = f"{len(positions)} positions"
    verdict.note = f"{cut} raised an error with one attempt; all were right with retries"


@pytest.mark.fault(
    "B6", "a byte of an answer is flipped", injected="a proxy, every 41st byte", short=True
)
def test_b6_a_flipped_answer_is_found_and_asked_for_again(verdict, store, proxy):
    upload = store.put(make_upload("b6", seed=8))
    length = len(store.get("/v1/requests/b6/routes").content) + 200
    positions = range(0, length, 41)
    found = 0
    for position in positions:
        proxy.toxics = Toxics(flip_response_at=position)
        with RouteStoreClient(proxy.url, attempts=1, timeout_s=2) as client:
            try:
                verdict.wrong += not same(client.fetch_request("b6"), upload)
            except errors.RouteReplayError:
                found += 1
    body = range(300, length - 300, 97)
    for position in body:
        proxy.toxics, proxy.struck = Toxics(flip_response_at=position, once=True), 0
        with RouteStoreClient(proxy.url, timeout_s=2) as client:
            check(verdict, client, [upload])
    verdict.load = f"{len(positions)} positions"
    verdict.note = f"{found} raised an error with one attempt; those in the body came right"
