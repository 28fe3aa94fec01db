"""F: keys that are missing, wrong, ended, replaced; other namespaces; TLS that does not fit."""

import ssl
import time

import httpx
import pytest
from support.frames import make_upload
from support.keys import Keys, bearer
from support.route_store import decode_routes, running_store
from support.store_processes import Sidecar, until

from routereplay.wire import MEDIA_TYPE


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    return Keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def store(tmp_path_factory, keys):
    folder = tmp_path_factory.mktemp("store")
    settings = {"durability": "memory", "keys_file": keys.path}
    with running_store("embedded", folder, **settings) as running:
        yield running


def put(store, key, upload):
    headers = {"Content-Type": MEDIA_TYPE, **bearer(key)}
    return store.http.post("/v1/ingest", content=upload.body, headers=headers).status_code


def get(store, key, name):
    return store.http.get(f"/v1/requests/{name}/routes", headers=bearer(key))


@pytest.mark.fault("F1", "keys that do not allow it", injected="requests", short=True)
def test_f01_a_key_that_does_not_allow_it_learns_nothing(store, keys, verdict):
    writer, reader = keys.make("write"), keys.make("read")
    ended, other = keys.make("admin", ended=True), keys.make("read", namespace="other")
    until(lambda: put(store, writer, make_upload("f1")) == 200)
    until(lambda: get(store, other, "f1").status_code == 404)
    for name in ("f1", "never-there"):
        answers = {
            "none": store.http.get(f"/v1/requests/{name}/routes").status_code,
            "wrong": get(store, reader[:-4] + "beef", name).status_code,
            "ended": get(store, ended, name).status_code,
            "writer": get(store, writer, name).status_code,
            "other": get(store, other, name).status_code,
        }
        assert answers == {"none": 401, "wrong": 401, "ended": 401, "writer": 403, "other": 404}
    assert put(store, reader, make_upload("f1-too")) == 403
    verdict.acked = 1
    verdict.lost = int(get(store, reader, "f1").status_code != 200)


@pytest.mark.fault("F2", "keys are replaced while records arrive", injected="the key file")
def test_f02_a_key_is_replaced_without_losing_a_record(store, keys, verdict):
    old = keys.make("admin")
    until(lambda: put(store, old, make_upload("f2-first")) == 200)
    new = keys.make("admin")
    began = time.monotonic()
    number, refused = 0, 0
    while get(store, new, "f2-first").status_code == 401:
        assert put(store, old, make_upload(f"f2-old-{number}", seed=number)) == 200
        number += 1
    taken_up = time.monotonic() - began
    keys.revoke(old)
    began = time.monotonic()
    while True:
        status = put(store, old, make_upload(f"f2-old-{number}", seed=number))
        if status != 200:
            refused = status
            break
        number += 1
    revoked = time.monotonic() - began
    verdict.acked = number
    for seed in range(number):
        answer = get(store, new, f"f2-old-{seed}")
        verdict.lost += answer.status_code != 200
        if answer.status_code == 200:
            _, rows, _ = decode_routes(answer)
            expected = make_upload(f"f2-old-{seed}", seed=seed).experts
            verdict.wrong += rows[0].tobytes() != expected.tobytes()
    verdict.note = f"taken up after {taken_up:.1f} s, refused {revoked:.1f} s after it was revoked"
    assert refused == 401
    assert max(taken_up, revoked) < 5


@pytest.mark.fault("F3", "certificates that do not fit, plain text", injected="trustme")
def test_f03_tls_that_does_not_fit_is_named_and_never_bypassed(verdict, tmp_path):
    import trustme

    from routereplay.client import RouteStoreClient
    from routereplay.wire.errors import StoreUnreachable

    authority, stranger = trustme.CA(), trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    pem = tmp_path / "server.pem"
    issued.private_key_and_cert_chain_pem.write_to_path(str(pem))
    sidecar = Sidecar(tmp_path, durability="memory", ssl_certfile=pem)
    sidecar.start(wait=False)
    https = sidecar.url.replace("http:", "https:")
    trusted = ssl.create_default_context()
    authority.configure_trust(trusted)

    def serves():
        try:
            return httpx.get(f"{https}/livez", verify=trusted).status_code == 200
        except httpx.TransportError:
            return False

    try:
        until(serves, 30)
        wrong = ssl.create_default_context()
        stranger.configure_trust(wrong)
        name = https.replace("127.0.0.1", "localhost")
        for url, context, says in (
            (https, wrong, "CERTIFICATE_VERIFY_FAILED"),
            (name, trusted, "CERTIFICATE_VERIFY_FAILED"),
            (sidecar.url, None, "begins with https"),
        ):
            with (
                RouteStoreClient(url, attempts=1, ssl_context=context) as client,
                pytest.raises(StoreUnreachable, match=says),
            ):
                client.fetch_request("any")
    finally:
        sidecar.stop()


@pytest.mark.fault("F4", "ids that look like another namespace's keys", injected="crafted ids")
def test_f04_no_id_leads_into_another_namespace(store, keys, verdict):
    mine, theirs = keys.make("admin", namespace="one"), keys.make("admin", namespace="two")
    until(lambda: put(store, mine, make_upload("secret", trajectory_id="talk")) == 200)
    until(lambda: get(store, theirs, "secret").status_code == 404)
    tried = 0
    for separator in ("/", ":", "%2F", "%00", ".", "..%2F", "}%7B", "%7B", "one/t:"):
        for name in ("secret", "talk"):
            for path in (f"one{separator}{name}", f"{separator}{name}", f"i:{name}", f"t:{name}"):
                for kind in ("requests", "trajectories"):
                    for tail in ("", "/routes"):
                        url = f"/v1/{kind}/{path}{tail}"
                        answer = store.http.get(url, headers=bearer(theirs))
                        tried += 1
                        assert answer.status_code in (400, 404), url
                        assert store.http.delete(url, headers=bearer(theirs)).status_code in (
                            *(400, 404, 405),
                        )
    verdict.note = f"{tried} names tried"
    verdict.acked, verdict.lost = 1, int(get(store, mine, "secret").status_code != 200)
