"""Every operation of the store's own description, with values that nobody would send."""

import os
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.frames import make_upload
from support.route_store import running_store

from routereplay.wire.errors import HTTP_STATUS

EXAMPLES = 2000 if os.environ.get("ROUTEREPLAY_FAULTS") == "all" else 150
CODES = {error.code: status for error, status in HTTP_STATUS.items()}
CODES |= {"no_such_endpoint": 404, "http": 405}
VALUES = st.one_of(
    st.text(max_size=40),
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(
        [
            *("known", "0", "-1", "0:4", "4:0", ":", "a:b", "1e309", "nan", "inf", "json", "npz"),
            *("../..", "%00", "{}", "known/routes", "0x10", "\0", "\u0661"),
            *("9" * 30, "9" * 9 + ":" + "9" * 9),
        ]
    ),
)
METHODS = ["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    limits = {"max_wait_s": 0.05, "durability": "memory"}
    with running_store("embedded", folder, **limits) as running:
        yield running


@pytest.fixture(scope="module")
def operations(store):
    """(method, path, names of query parameters) of everything that is described."""
    described = store.get("/openapi.json").json()["paths"]
    found = [
        (method.upper(), path, [p["name"] for p in operation.get("parameters", ())])
        for path, methods in described.items()
        for method, operation in methods.items()
        if method in ("get", "post", "delete", "put")
    ]
    assert len(found) > 10
    return found


@settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None
)
@given(data=st.data())
def test_no_request_is_answered_with_an_error_that_is_not_documented(store, operations, data):
    described, path, names = data.draw(st.sampled_from(operations))
    method = data.draw(st.one_of(st.just(described), st.sampled_from(METHODS)))
    for name in names:
        path = path.replace(f"{{{name}}}", quote(data.draw(VALUES) or "x", safe=""))
    asked = data.draw(st.lists(st.tuples(st.sampled_from([*names, "extra"]), VALUES), max_size=4))
    body = data.draw(st.one_of(st.just(b""), st.binary(max_size=200), st.sampled_from(BODIES)))
    answer = store.http.request(
        method,
        path + "?" + "&".join(f"{quote(name)}={quote(value, safe='')}" for name, value in asked),
        content=body,
    )

    if answer.status_code >= 400 and method != "HEAD" and "results" not in answer.text[:12]:
        problem = answer.json()
        assert CODES.get(problem["code"]) == answer.status_code or problem["code"] == "http"
        assert problem["status"] == answer.status_code
        assert problem["message"]
    assert answer.status_code != 500
    if data.draw(st.integers(0, 20)) == 0:
        store.put(make_upload("known"))
        assert store.get("/v1/requests/known/routes").status_code in (200, 404)


BODIES = [
    b"{}",
    b"[]",
    b"null",
    b'{"requests":[{"id":"known"}]}',
    b'{"requests":[{"id":"known","choice":-1}],"layers":[4,0]}',
    b'{"requests":[{"id":1}]}',
    b'{"trajectories":["known"],"wait":1e400}',
    b'{"trajectories":["\\ud800"]}',
    b'{"requests":' + b"[" * 10_000,
    make_upload("fuzzed").body,
    make_upload("fuzzed").body[:-64],
    make_upload("fuzzed").body[64:],
]
