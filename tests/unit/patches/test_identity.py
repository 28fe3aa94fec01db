import pytest

from routereplay.patches.vllm.identity import Ordinals, client_id, trajectory_id
from routereplay.wire.ids import is_valid_id


@pytest.mark.parametrize(
    ("external", "index", "n", "expected"),
    [
        ("chatcmpl-abc", 1, 2, ("chatcmpl-abc", 1, ("abc",))),
        ("cmpl-abc-0", 0, 1, ("cmpl-abc", 0, ("abc",))),
        ("cmpl-abc-3", 1, 2, ("cmpl-abc", 7, ("abc",))),
        ("cmpl-abc-7-0", 0, 1, ("cmpl-abc-7", 0, ("abc-7",))),
        ("generate-tokens-abc", 0, 1, ("generate-tokens-abc", 0, ("abc",))),
        ("resp_abc_0", 0, 1, ("resp_abc_0", 0, ("resp_abc",))),
        ("resp_abc_1", 0, 1, ("resp_abc_1", 0, ())),
        ("17", 0, 1, ("engine.17", 0, ())),
        ("my-own", 0, 1, ("my-own", 0, ())),
    ],
)
def test_the_client_finds_its_choice(external, index, n, expected):
    assert client_id(external, index, n, "engine") == expected


def test_an_id_that_cannot_be_a_key_is_normalised_with_its_alias():
    found = client_id("chatcmpl-{a}/../b\n", 0, 1, "engine")

    assert is_valid_id(found.request_id)
    assert all(is_valid_id(alias) for alias in found.aliases)


@pytest.mark.parametrize(
    ("session", "extra_args", "expected"),
    [
        (None, {}, None),
        ("s", {}, "s"),
        ("s", {"trajectory_id": "t"}, "t"),
        (None, {"trajectory_id": 7}, "7"),
        ("s", {"trajectory_id": [1]}, "s"),
        ("", {"trajectory_id": ""}, None),
    ],
)
def test_the_trajectory_is_named_by_the_request_or_its_session(session, extra_args, expected):
    assert trajectory_id(session, extra_args) == expected


def test_ordinals_count_requests_and_remember_a_bounded_number():
    ordinals = Ordinals(limit=2)

    assert [ordinals.of("a", r) for r in ("r0", "r1", "r1", "r2")] == [0, 1, 1, 2]
    assert ordinals.of(None, "r3") == 0
    assert ordinals.of("b", "r4") == 0
    assert ordinals.of("c", "r5") == 0
    assert len(ordinals._next) == len(ordinals._given) == 2
