"""What cannot be real is found however the rows are cut into chunks, and nothing else is."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from routereplay.patches.vllm.record import ModelFacts
from routereplay.patches.vllm.watch import REASONS, Watch

ALL = ModelFacts("tiny", num_layers=4, topk=2, num_experts=16, moe_layers=(0, 1, 2, 3))
DENSE_FIRST = dataclasses.replace(ALL, moe_layers=(1, 2, 3))


def routes(rows, seed=0, model=ALL):
    scores = np.random.default_rng(seed).random((rows, model.num_layers, model.num_experts))
    chosen = np.argsort(scores, axis=-1)[..., : model.topk].astype(model.dtype)
    dense = [n for n in range(model.num_layers) if n not in (model.moe_layers or range(n + 1))]
    chosen[:, dense] = 0
    return chosen


def watched(rows_TLK, tokens=None, model=ALL, cuts=()):
    watch = Watch(model)
    for part in np.split(rows_TLK, sorted(cuts)):
        watch.look(part)
    return watch.verdict(list(range(len(rows_TLK) + 1)) if tokens is None else tokens)


cuts_of_100 = st.lists(st.integers(0, 100), max_size=8)


@given(st.integers(0, 1000), st.sampled_from([ALL, DENSE_FIRST]), cuts_of_100)
def test_real_rows_pass(seed, model, cuts):
    assert watched(routes(100, seed, model), model=model, cuts=cuts) == ()


@given(cuts_of_100)
def test_rows_that_stay_while_the_tokens_change_are_stale(cuts):
    rows = routes(100)
    rows[40:52] = rows[40]

    assert watched(rows, cuts=cuts) == ("stale_rows",)


@given(cuts_of_100)
def test_a_text_that_repeats_itself_may_repeat_its_rows(cuts):
    rows = routes(100)
    rows[40:90] = rows[40]
    tokens = [*range(40), *[7, 8] * 25, *range(90, 101)]

    assert watched(rows, tokens, cuts=cuts) == ()


@given(st.integers(0, 92), cuts_of_100)
def test_a_few_equal_rows_prove_nothing(start, cuts):
    rows = routes(100)
    rows[start : start + 7] = rows[start]

    assert watched(rows, cuts=cuts) == ()


def test_zero_rows_are_found_where_the_canary_saw_routes():
    rows = routes(100, model=DENSE_FIRST)
    rows[:, 2] = 0

    assert watched(rows, model=DENSE_FIRST) == ("zero_rows",)


def test_without_a_canary_planes_are_not_judged():
    rows = routes(100)
    rows[:, 2] = 0

    assert watched(rows, model=dataclasses.replace(ALL, moe_layers=None)) == ()


def test_an_expert_named_twice_is_found():
    rows = routes(100)
    rows[:, 1] = 5

    assert watched(rows) == ("repeated_experts",)


def test_a_row_in_a_dense_layer_means_that_the_layers_moved():
    rows = np.roll(routes(100, model=DENSE_FIRST), 1, axis=1)

    assert watched(rows, model=DENSE_FIRST) == ("shifted_layers", "zero_rows")


def test_a_model_with_one_expert_a_token_may_route_to_expert_zero():
    model = ModelFacts("switch", num_layers=2, topk=1, num_experts=4, moe_layers=(0, 1))
    rows = np.random.default_rng(0).integers(0, 4, (100, 2, 1)).astype("uint8")

    assert watched(rows, model=model) == ()


@pytest.mark.parametrize("rows", [0, 1])
def test_few_rows_are_no_matter(rows):
    assert watched(routes(rows)) == ()


def test_every_reason_is_explained_to_operators():
    from pathlib import Path

    operating = (Path(__file__).parents[3] / "docs/operating.md").read_text()

    assert len(REASONS) == 4
    assert all(f"| `{reason}` | {text} |" in operating for reason, text in REASONS.items())
