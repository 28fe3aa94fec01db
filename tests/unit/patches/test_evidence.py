"""Real routes raise no doubt; each known way in which capture fails does."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from routereplay.patches.vllm.evidence import doubts, impossible, routed_layers
from routereplay.patches.vllm.record import ModelFacts

MODEL = ModelFacts("tiny", num_layers=4, topk=2, num_experts=16)
PROMPT, NEW = 32, 8
TOKENS = list(range(PROMPT + NEW))


def routes(rows=PROMPT + NEW - 1, seed=0, model=MODEL, dense=(0,)):
    """Distinct experts for every token and layer; dense layers are zero."""
    random = np.random.default_rng(seed)
    scores = random.random((rows, model.num_layers, model.num_experts))
    chosen = np.argsort(scores, axis=-1)[..., : model.topk].astype(model.dtype)
    chosen[:, list(dense)] = 0
    return chosen


def steps(rows_TLK):
    """As an engine delivers them: the prompt's with the first token, then one a step."""
    return [rows_TLK[:PROMPT], *np.split(rows_TLK[PROMPT:], NEW - 1)]


def judged(rows_TLK, model=MODEL, tokens=TOKENS):
    return doubts(steps(rows_TLK), model, tokens, PROMPT)


@given(st.integers(0, 10_000), st.sampled_from([(16, 2, 4), (128, 8, 24), (384, 8, 5)]))
def test_real_routes_raise_no_doubt(seed, shape):
    experts, topk, layers = shape
    model = ModelFacts("m", num_layers=layers, topk=topk, num_experts=experts)

    assert judged(routes(seed=seed, model=model), model) == []


def test_layers_without_any_route_are_dense():
    assert routed_layers(routes(dense=(0, 2))) == (1, 3)


def zeroed(rows):
    rows[:] = 0


def one_layer_constant(rows):
    rows[:, 2] = rows[0, 2]


def stale_while_decoding(rows):
    rows[PROMPT:] = rows[0]


def a_layer_over_another(rows):
    rows[:, 1] = rows[:, 3]


def an_expert_twice(rows):
    rows[5, 2] = rows[5, 2, 0]


def an_expert_too_many(rows):
    rows[5, 2, 1] = 16


@pytest.mark.parametrize(
    ("damage", "doubt"),
    [
        (zeroed, "every id of every row is zero"),
        (one_layer_constant, "layers 2 route every token alike"),
        (stale_while_decoding, "the rows of 7 generated tokens are one and the same row"),
        (a_layer_over_another, "layers 1 and 3 have the same rows"),
        (an_expert_twice, "layers 2 name an expert twice"),
        (an_expert_too_many, "expert 16 of a model that has 16"),
    ],
)
def test_a_failed_capture_is_doubted(damage, doubt):
    rows = routes()
    damage(rows)

    assert doubt in "; ".join(judged(rows))


@pytest.mark.parametrize(
    ("damage", "by_weights"),
    [
        (zeroed, False),
        (one_layer_constant, True),
        (stale_while_decoding, True),
        (a_layer_over_another, True),
        (an_expert_twice, False),
        (an_expert_too_many, False),
    ],
)
def test_what_placeholders_can_do_is_told_from_what_no_weights_explain(damage, by_weights):
    rows = routes()
    damage(rows)

    assert (impossible(steps(rows), MODEL, TOKENS) == []) == by_weights


def test_one_expert_a_token_can_be_the_first_of_all_with_placeholders():
    model = ModelFacts("tiny", num_layers=4, topk=1, num_experts=16)
    rows = np.zeros((PROMPT + NEW - 1, 4, 1), "uint8")

    assert impossible(steps(rows), model, TOKENS) == []
    assert "every id of every row is zero" in "; ".join(judged(rows, model))


def test_rows_that_never_came_are_doubted():
    assert doubts([], MODEL, TOKENS, PROMPT) == ["no row came with any step of the engine"]


@pytest.mark.parametrize("missing", [1, 7])
def test_a_row_that_is_missing_is_doubted(missing):
    (doubt,) = doubts([routes()[missing:]], MODEL, TOKENS, PROMPT)

    assert doubt == f"{39 - missing} rows came for 40 tokens; expected 39"


def test_rows_of_another_shape_or_dtype_are_doubted():
    wide, deep = routes().astype("uint16"), routes()[:, :3]

    assert "expected (4, 2) of uint8" in doubts([wide], MODEL, TOKENS, PROMPT)[0]
    assert "rows (3, 2) of uint8 came" in doubts([deep], MODEL, TOKENS, PROMPT)[0]


def test_generated_tokens_that_repeat_may_have_one_row():
    rows = routes()
    stale_while_decoding(rows)

    assert judged(rows, tokens=[*range(PROMPT), *[9] * NEW]) == []
