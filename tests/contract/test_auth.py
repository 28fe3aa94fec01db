"""Who may do what, and that one namespace does not exist for another."""

import httpx
import pytest
from support.frames import make_conversation, make_upload
from support.keys import Keys, bearer
from support.route_store import running_store
from support.store_processes import Sidecar, until

from routereplay.cli.doctor_running import check_store
from routereplay.wire import MEDIA_TYPE

ROUTE_PATHS = [
    ("GET", "/v1/requests/owned"),
    ("GET", "/v1/requests/owned/routes"),
    ("DELETE", "/v1/requests/owned"),
    ("GET", "/v1/trajectories/talk"),
    ("GET", "/v1/trajectories/talk/routes"),
    ("DELETE", "/v1/trajectories/talk"),
]


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    return Keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def by(keys):
    """The keys of the tests, by name."""
    return {
        "read": keys.make("read"),
        "write": keys.make("write"),
        "admin": keys.make("admin"),
        "other": keys.make("admin", namespace="other"),
        "ended": keys.make("admin", ended=True),
    }


@pytest.fixture(scope="module")
def store(tmp_path_factory, keys, by):
    settings = {"durability": "memory", "keys_file": keys.path, "log_level": "DEBUG"}
    with running_store("embedded", tmp_path_factory.mktemp("store"), **settings) as running:
        yield running


def put(store, key, upload):
    headers = {"Content-Type": MEDIA_TYPE, **bearer(key)}
    return store.http.post("/v1/ingest", content=upload.body, headers=headers)


def ask(store, key, method, path):
    return store.http.request(method, path, headers=bearer(key) if key else {})


@pytest.fixture(scope="module", autouse=True)
def owned(store, by):
    assert put(store, by["write"], make_upload("owned", seed=1)).status_code == 200
    for turn in make_conversation("talk"):
        assert put(store, by["write"], turn).status_code == 200


def test_only_the_probes_and_the_empty_page_answer_without_a_key(store, by):
    described = ask(store, by["read"], "GET", "/openapi.json").json()["paths"]
    pages = [(p, "get") for p in ("/", "/docs", "/openapi.json", "/no/such/path")]
    operations = [(path, method) for path, found in described.items() for method in found]

    assert len(operations) > 10
    for path, method in [*operations, *pages]:
        expected = 200 if path in ("/livez", "/readyz", "/") else 401
        response = ask(store, None, method.upper(), path)
        assert response.status_code == expected, path
        if expected == 401:
            assert response.json()["code"] == "unauthenticated"
            assert "Bearer" in response.headers["www-authenticate"]


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer x y",
        "Bearer rr_",
        "Bearer rr__",
        "Bearer rr_x_y",
        "Bearer ü",
        "Basic x",
        "Basic eDp5",
        "Digest x",
        "rr_x_y",
    ],
)
def test_what_is_no_key_is_refused(store, header):
    response = store.http.get("/v1/info", headers={"Authorization": header.encode("latin-1")})

    assert (response.status_code, response.json()["code"]) == (401, "unauthenticated")


def test_a_known_id_with_another_secret_is_refused_like_an_unknown_one(store, by):
    _, key_id, secret = by["read"].split("_")
    wrong = f"rr_{key_id}_{secret[::-1]}"
    answers = [ask(store, key, "GET", "/v1/info") for key in (wrong, f"rr_nobody_{secret}")]

    assert [answer.status_code for answer in answers] == [401, 401]
    assert answers[0].content == answers[1].content


def test_two_keys_at_once_are_refused(store, by):
    both = [("Authorization", f"Bearer {by['read']}"), ("Authorization", f"Bearer {by['admin']}")]

    assert store.http.get("/v1/info", headers=both).status_code == 401


def test_a_key_past_its_end_is_refused_and_says_so(store, by):
    response = ask(store, by["ended"], "GET", "/v1/info")

    assert response.status_code == 401
    assert "2020-01-01" in response.json()["message"]


@pytest.mark.parametrize(
    ("key", "method", "path", "status"),
    [
        ("read", "GET", "/v1/requests/owned", 200),
        ("read", "GET", "/v1/requests/unknown", 404),
        ("read", "DELETE", "/v1/requests/owned", 403),
        ("read", "DELETE", "/v1/requests/unknown", 403),
        ("read", "POST", "/v1/ingest", 403),
        ("read", "PUT", "/v1/ingest", 403),
        ("read", "GET", "/metrics", 200),
        ("write", "GET", "/v1/requests/owned", 403),
        ("write", "GET", "/v1/requests/unknown", 403),
        ("write", "POST", "/v1/fetch", 403),
        ("write", "GET", "/metrics", 403),
        ("write", "POST", "/v1/ingest/", 403),
        ("admin", "GET", "/v1/requests/owned", 200),
        ("other", "GET", "/v1/requests/owned", 404),
    ],
)
def test_a_key_allows_what_its_scopes_say(store, by, key, method, path, status):
    response = ask(store, by[key], method, path)

    assert response.status_code == status
    if status == 403:
        assert response.json()["code"] == "forbidden"


@pytest.mark.parametrize(("method", "path"), ROUTE_PATHS)
def test_what_another_namespace_holds_does_not_exist(store, by, method, path):
    theirs = ask(store, by["other"], method, path)
    nobodys = ask(store, by["other"], method, path.replace("owned", "none").replace("talk", "none"))

    assert theirs.status_code == nobodys.status_code == 404
    assert theirs.json()["code"] == nobodys.json()["code"] == "not_found"
    assert ask(store, by["read"], "GET", "/v1/requests/owned/routes").status_code == 200


def test_one_id_in_two_namespaces_is_two_records(store, by):
    mine, theirs = make_upload("shared", seed=2), make_upload("shared", seed=3)
    for key, upload in (("write", mine), ("other", theirs)):
        assert put(store, by[key], upload).status_code == 200

    for key, upload in (("read", mine), ("other", theirs)):
        found = ask(store, by[key], "GET", "/v1/requests/shared").json()["choices"][0]
        assert found["manifest"]["started_at"] == upload.manifest.started_at
    assert ask(store, by["other"], "DELETE", "/v1/requests/shared").json() == {"deleted": 1}
    assert ask(store, by["read"], "GET", "/v1/requests/shared/routes").status_code == 200


def test_lists_show_ones_own_namespace_only(store, by):
    def listed(key):
        text = ask(store, by[key], "GET", "/v1/requests").text
        return "owned" in text, "of-the-other" in text

    assert put(store, by["other"], make_upload("of-the-other", seed=4)).status_code == 200
    until(lambda: listed("other") == (False, True))
    until(lambda: listed("read") == (True, False))
    assert "owned" not in ask(store, by["other"], "GET", "/v1/summary").text
    assert "talk" not in ask(store, by["other"], "GET", "/v1/trajectories").text


def test_a_browser_may_read_with_the_key_as_password_and_not_post(store, by):
    auth = httpx.BasicAuth("anyone", by["admin"])

    assert store.http.get("/", auth=auth).status_code == 200
    assert store.http.post("/v1/fetch", auth=auth, content=b"{}").status_code == 401


def test_keys_are_taken_up_and_refused_without_a_restart(store, keys):
    fresh = keys.make("read")
    until(lambda: ask(store, fresh, "GET", "/v1/info").status_code == 200, timeout_s=5)
    keys.revoke(fresh)
    until(lambda: ask(store, fresh, "GET", "/v1/info").status_code == 401, timeout_s=5)


def test_a_broken_key_file_changes_nothing_and_is_reported(store, keys, by):
    good = keys.path.read_bytes()
    keys.path.write_bytes(good[:-20])
    try:
        until(lambda: "files_in_order 0.0" in ask(store, by["read"], "GET", "/metrics").text)
    finally:
        keys.path.write_bytes(good)
    until(lambda: "files_in_order 1.0" in ask(store, by["read"], "GET", "/metrics").text)


def test_no_secret_is_ever_logged(store, by):
    for key in by.values():
        ask(store, key, "GET", "/v1/requests/nobody")
        ask(store, key[:-1] + "0", "GET", "/v1/info")

    log = store.sidecar.log()
    assert log
    assert [name for name, key in by.items() if key.split("_")[2] in log] == []


def test_every_answer_forbids_guessing_its_type(store, by):
    for path in ("/", "/v1/info", "/v1/requests/owned/routes"):
        answer = ask(store, by["read"], "GET", path)
        assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"host": "0.0.0.0"}, "exposed_without_keys"),
        ({"host": "::"}, "exposed_without_keys"),
        ({"keys_file": "/nowhere/keys.json"}, "key_file_invalid"),
        ({"ssl_keyfile": "/nowhere/key.pem"}, "tls_misconfigured"),
        ({"redis_url_file": "/nowhere/url"}, "REDIS_URL_FILE"),
    ],
)
def test_a_store_that_would_be_open_or_blind_does_not_start(tmp_path, settings, says):
    sidecar = Sidecar(tmp_path, **settings)
    sidecar.start(wait=False)

    assert sidecar.wait() == 3
    assert says in sidecar.log()


def test_a_password_in_a_url_is_never_shown(tmp_path):
    sidecar = Sidecar(tmp_path, redis_url="redis+wrong://user:hush-hush@127.0.0.1:1")
    sidecar.start(wait=False)

    assert sidecar.wait() != 0
    assert "hush-hush" not in sidecar.log()


@pytest.mark.parametrize(
    ("name", "state", "said"),
    [
        (None, "failed", "none is set here"),
        ("ended", "failed", "ended"),
        ("read", "ok", "knows our API key"),
        ("write", "ok", "allows write"),
    ],
)
def test_the_doctor_tells_whether_the_store_takes_our_key(
    store, by, monkeypatch, name, state, said
):
    monkeypatch.delenv("ROUTEREPLAY_API_KEY", raising=False)
    if name:
        monkeypatch.setenv("ROUTEREPLAY_API_KEY", by[name])

    findings = {found.check: found for found in check_store(store.sidecar.url)}

    assert findings["store"].state == "ok"
    assert findings["key"].state == state
    assert said in findings["key"].text


def test_without_keys_a_page_of_another_site_reaches_nothing(tmp_path):
    with running_store("embedded", tmp_path, durability="memory") as keyless:
        keyless.put(make_upload("private"))
        for path in ("/v1/requests/private/routes", "/", "/livez"):
            answer = keyless.http.get(path, headers={"Host": "rebound.example:8400"})
            assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
        stranger = {"Host": "rebound.example"}
        assert keyless.http.delete("/v1/requests/private", headers=stranger).status_code == 403
        assert keyless.get("/v1/requests/private/routes").status_code == 200


def test_with_keys_any_name_will_do(store, by):
    headers = {"Host": "store.example.com", **bearer(by["read"])}
    assert store.http.get("/v1/requests/owned", headers=headers).status_code in (200, 404)
