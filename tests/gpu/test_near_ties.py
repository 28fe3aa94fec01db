"""The bound by which rows of a GPU are judged: right rows pass, wrong ones do not. On a CPU."""

import numpy as np
import pytest
import torch
from gpu.near_ties import assert_rows_are_of_their_tokens, not_of_their_tokens, shortfall
from support.hf_reference import Reference
from support.lora_adapter import write_adapter

from routereplay.parity.tiny_moe import write_tiny_moe

PROMPT = 130


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    return write_tiny_moe(folder, num_layers=8, dense_layers=(0,), head_dim=128)


@pytest.fixture(scope="module")
def forwards(model):
    """Rows of a forward in bfloat16, and logits of one in float32, of the same tokens."""
    return in_both(model, count=24)


def in_both(model, count, change=None):
    rounded, exact = Reference(model, change, torch.bfloat16), Reference(model, change)
    asked = np.random.default_rng(2).integers(1, 500, (count, PROMPT + 120))
    return [(rounded.experts(tokens), exact.logits(tokens)) for tokens in asked]


def test_rounding_passes_also_where_it_changes_most_layers_of_a_row(forwards):
    changed = []
    for experts, logits in forwards:
        assert_rows_are_of_their_tokens(experts, logits)
        reference = np.sort(np.argsort(-logits, axis=-1)[..., :4], axis=-1)
        changed.append((experts != reference).any(axis=-1)[:, 1:].sum(axis=-1))

    assert np.max(changed) >= 5, "a near tie in an early router, and the others follow"
    worst = max(shortfall(*each).max() for each in forwards)
    assert worst < 0.75, "there is room above what rounding does"


def test_rounding_of_an_adapted_model_passes(model, tmp_path):
    for experts, logits in in_both(model, 6, write_adapter(tmp_path, model)):
        assert_rows_are_of_their_tokens(experts, logits)


@pytest.mark.parametrize("by", [1, -1, 7, 32])
def test_rows_that_are_shifted_fail(forwards, by):
    for experts, logits in forwards:
        wrong = not_of_their_tokens(np.roll(experts, by, axis=0), logits)

        assert len(wrong) > 0.95 * len(experts)


@pytest.mark.parametrize("since", [PROMPT, -4, -1])
def test_rows_that_are_late_by_one_after_a_preemption_fail(forwards, since):
    """Also if only the last row is: that of the token before it."""
    seen = 0
    for experts, logits in forwards:
        late = experts.copy()
        late[since:] = experts[since - 1 : -1]
        seen += len(not_of_their_tokens(late, logits)) > 0
        if since == PROMPT:
            with pytest.raises(AssertionError, match="are not their tokens'"):
                assert_rows_are_of_their_tokens(late, logits)

    assert seen >= 0.9 * len(forwards)


def test_a_single_row_of_another_token_is_found(forwards):
    experts, logits = forwards[1]
    found = 0
    for row in range(len(experts)):
        swapped = experts.copy()
        swapped[row] = experts[row - 5]
        found += row in not_of_their_tokens(swapped, logits)

    assert found > 0.95 * len(experts)


@pytest.mark.parametrize("by", [1, -1])
def test_layers_that_are_shifted_fail(forwards, by):
    experts, logits = forwards[2]
    shifted = experts.copy()
    shifted[:, 1:] = np.roll(experts[:, 1:], by, axis=1)

    assert len(not_of_their_tokens(shifted, logits)) > 0.95 * len(experts)
    with pytest.raises(AssertionError, match="dense layers have no rows"):
        assert_rows_are_of_their_tokens(np.roll(experts, 1, axis=1), logits)


@pytest.mark.parametrize("above", [2, 5])
def test_layers_that_are_shifted_above_right_ones_fail(forwards, above):
    experts, logits = forwards[3]
    shifted = experts.copy()
    shifted[:, above:] = np.roll(experts[:, above:], 1, axis=1)

    # A row is judged where it differs first: one that rounding changed below is not.
    assert len(not_of_their_tokens(shifted, logits)) > 0.8 * len(experts)


def test_a_wrong_layer_after_right_ones_is_found(forwards):
    experts, logits = forwards[3]
    wrong = experts.copy()
    wrong[40, 5] = np.argsort(logits[40, 5])[:4]

    assert 40 in not_of_their_tokens(wrong, logits)
