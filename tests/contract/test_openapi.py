"""The running store against its own description, by schemathesis: what nobody would send, too."""

import itertools
import json
from urllib.parse import quote

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from schemathesis.config import SchemathesisConfig
from support.frames import make_upload
from support.fuzz import LONG, count
from support.route_store import running_store

from routereplay.sidecar.api.openapi import described
from routereplay.sidecar.app import create_app
from routereplay.sidecar.auth.key_store import write_key_file
from routereplay.sidecar.auth.keys import KeyFile, new_key
from routereplay.sidecar.settings import Settings
from routereplay.wire import MEDIA_TYPE
from routereplay.wire.errors import HTTP_STATUS
from routereplay.wire.ids import normalize_id

FUZZED = "requests to each operation of the OpenAPI description, by schemathesis"
__all__ = ["count"]  # a fixture
EXAMPLES = 300 if LONG else 25
CODES = {error.code: status for error, status in HTTP_STATUS.items()}
CODES |= {"no_such_endpoint": 404, "http": 405}
FILLS = itertools.count()
KNOWN = ("known", "talk", "talk-turn-0", "talk-turn-1")
HOSTILE = ("../..", "%00", "{}", "known/routes", "\u0661", "*", "a" * 300, "known?x=1#y")
# What JSON Schema cannot say: a range that ends before it begins, layers that no model has.
ONLY_WE_KNOW = ("/routes", "/experts", "/v1/fetch", "/v1/ingest")

FRAMES = make_upload("fuzzed")
schemathesis.openapi.media_type(
    MEDIA_TYPE,
    st.one_of(
        st.binary(max_size=200),
        st.sampled_from(
            [FRAMES.body, FRAMES.body[:-64], FRAMES.body[64:], FRAMES.seal_frame, b"", b"RRF\n"]
        ),
    ),
)


@schemathesis.serializer(MEDIA_TYPE)
def as_it_is(ctx, value):
    return value if isinstance(value, bytes) else str(value).encode()


@schemathesis.check
def a_problem_says_what_its_status_says(ctx, response, case):
    """Every error is a problem document, and its code belongs to its status."""
    if response.status_code < 400 or case.method == "HEAD":
        return
    found = response.json()
    if "results" in found:
        code = next(one["code"] for one in found["results"] if one["status"] == "refused")
        assert CODES[code] == response.status_code, found
        return
    assert found["message"], found
    assert found["status"] == response.status_code, found
    assert CODES.get(found["code"]) == response.status_code, found


MADE = new_key(("admin",), namespace="default")
CONFIG = {
    "headers": {"Authorization": f"Bearer {MADE.text}"},
    # A parameter that we do not know is one that a later release may know.
    "generation": {"with-security-parameters": False, "allow-extra-parameters": False},
}


def describe():
    """The description of a store with keys; it is needed before there is one."""
    return described(create_app(Settings()), with_keys=True)


schema = schemathesis.openapi.from_dict(describe(), config=SchemathesisConfig.from_dict(CONFIG))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    keys_file = tmp_path_factory.mktemp("keys") / "keys.json"
    write_key_file(keys_file, KeyFile(keys=(MADE.key,)))
    found = {"max_wait_s": 0.05, "durability": "memory", "keys_file": keys_file}
    with running_store("embedded", tmp_path_factory.mktemp("store"), **found) as running:
        running.http.headers.update(CONFIG["headers"])
        yield running


@pytest.fixture(scope="module")
def session():
    with requests.Session() as found:
        yield found


@pytest.fixture
def filled(store):
    """What the operation before deleted is there again, from another upload."""
    number = next(FILLS)
    store.put(make_upload("known", upload_id=f"0_known-{number}"))
    for turn in range(2):
        name = f"talk-turn-{turn}"
        upload_id = f"0_{name}-{number}"
        store.put(make_upload(name, trajectory_id="talk", ordinal=turn, upload_id=upload_id))


@schema.hook
def flatmap_path_parameters(ctx, path_parameters):
    if not path_parameters:
        return st.just(path_parameters)
    known = st.sampled_from([*KNOWN, *HOSTILE])
    chosen = known.map(lambda one: dict.fromkeys(path_parameters, one))
    return st.one_of(st.just(path_parameters), chosen)


@schema.parametrize()
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],
)
def test_every_answer_is_one_that_is_described(case, store, session, filled, count):
    count.one()
    excluded = []
    if case.path.endswith(ONLY_WE_KNOW):
        excluded.append(schemathesis.checks.positive_data_acceptance)
    case.call_and_validate(
        base_url=store.sidecar.url,
        session=session,
        headers=CONFIG["headers"],
        excluded_checks=excluded,
    )


def test_the_store_describes_itself_so(store):
    assert store.get("/openapi.json").json() == json.loads(json.dumps(describe()))


def test_afterwards_the_store_serves_as_before(store, filled):
    for path in ("/v1/requests/known/routes", "/v1/trajectories/talk/routes"):
        assert store.get(path).status_code == 200


def test_a_slash_in_an_id_is_part_of_it(store):
    name = "task/17"
    store.put(make_upload(normalize_id(name), trajectory_id=normalize_id("run/routes")))

    for path in (f"/v1/requests/{quote(name, safe='')}", "/v1/trajectories/run%2froutes"):
        assert store.get(path).status_code == 200
        assert store.get(f"{path}/routes").headers["content-type"] == MEDIA_TYPE
    assert store.get("/v1/requests/task/17").json()["code"] == "no_such_endpoint"
