"""A quick route answers every query as FastAPI's own does, and takes the plain ones itself."""

from typing import Annotated
from urllib.parse import urlencode

import pytest
from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st

from routereplay.sidecar.api import quick
from routereplay.sidecar.api.params import Choice, Format, PolicyText, RangeText, WaitText
from routereplay.sidecar.api.quick import QuickRoute

PLAIN = {"choice": "3", "layers": "0:24", "wait": "1.5", "format": "npz", "policy": "7"}
TEXTS = st.one_of(
    st.sampled_from([*PLAIN.values(), "-1", "007", "1_0", " 1", "1e3", "nan", "inf", "", "1."]),
    st.text(max_size=4),
)
QUERIES = st.lists(st.tuples(st.sampled_from([*PLAIN, "other"]), TEXTS), max_size=4)


async def handler(
    request: Request,
    item: str,
    choice: Choice = 0,
    layers: RangeText = None,
    wait: WaitText = 0.0,
    format: Format = "routes",
    policy: PolicyText = None,
):
    found = [item, choice, layers, wait, format, policy]
    return quick.Response(repr((request.method, found)))


def app_of(route_class):
    router = APIRouter(route_class=route_class)
    router.get("/{item}")(handler)
    app = FastAPI()
    app.include_router(router)
    return TestClient(app)


FASTAPI, QUICK = app_of(quick.APIRoute), app_of(QuickRoute)


@settings(deadline=None, max_examples=300)
@given(QUERIES)
def test_every_query_is_answered_as_fastapi_answers_it(query):
    target = f"/an-id?{urlencode(query)}"
    expected, found = FASTAPI.get(target), QUICK.get(target)

    assert (found.status_code, found.text) == (expected.status_code, expected.text)


def test_what_is_plain_does_not_come_to_fastapi(monkeypatch):
    def asked(*_, **__):
        raise AssertionError

    monkeypatch.setattr("fastapi.routing.solve_dependencies", asked)

    assert QUICK.get("/an-id", params=PLAIN).status_code == 200
    with pytest.raises(AssertionError):
        QUICK.get("/an-id", params={"choice": "-1"})


def test_an_operation_with_what_is_never_plain_is_left_to_fastapi():
    async def bounded(few: Annotated[int, Query(le=3)] = 0):
        return quick.Response(f"{few}")

    async def needed(word: str):
        return quick.Response(word)

    router = APIRouter(route_class=QuickRoute)
    router.get("/bounded")(bounded)
    router.get("/needed")(needed)
    app = FastAPI()
    app.include_router(router)
    client = TestClient(app)

    assert [client.get(f"/bounded?few={few}").status_code for few in (3, 4)] == [200, 422]
    assert [client.get(f"/needed{query}").status_code for query in ("?word=a", "")] == [200, 422]


def test_names_that_may_repeat_come_as_a_list():
    async def many(has: Annotated[list[str], Query(alias="request")] = []):  # noqa: B006
        return quick.Response(repr(has))

    router = APIRouter(route_class=QuickRoute)
    router.get("/many")(many)
    app = FastAPI()
    app.include_router(router)

    assert TestClient(app).get("/many?request=a&request=b").text == "['a', 'b']"
