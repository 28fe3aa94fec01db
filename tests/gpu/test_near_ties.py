"""The bound by which rows of a GPU are judged: right rows pass, wrong ones do not. On a CPU."""

import numpy as np
import pytest
import torch
from gpu.near_ties import assert_rows_are_of_their_tokens, not_of_their_tokens
from support.hf_reference import Reference

from routereplay.parity.tiny_moe import write_tiny_moe


@pytest.fixture(scope="module")
def forwards(tmp_path_factory):
    """Rows of a forward in bfloat16, and logits of one in float32, of the same tokens."""
    path = write_tiny_moe(
        tmp_path_factory.mktemp("model"), num_layers=8, dense_layers=(0,), head_dim=128
    )
    rounded, exact = Reference(path, dtype=torch.bfloat16), Reference(path)
    prompts = np.random.default_rng(2).integers(1, 500, (16, 130))
    return [(rounded.experts(tokens), exact.logits(tokens)) for tokens in prompts]


def test_rounding_passes_also_where_it_changes_most_layers_of_a_row(forwards):
    for experts, logits in forwards:
        assert_rows_are_of_their_tokens(experts, logits)
    experts, logits = forwards[0]
    reference = np.sort(np.argsort(-logits, axis=-1)[..., :4], axis=-1)
    agreeing = (experts == reference).all(axis=-1)[:, 1:].sum(axis=-1)

    assert agreeing[53] <= 2, "a near tie in the first router, and all others follow"


@pytest.mark.parametrize("by", [1, -1, 7])
def test_rows_that_are_shifted_fail(forwards, by):
    for experts, logits in forwards:
        wrong = not_of_their_tokens(np.roll(experts, by, axis=0), logits)

        assert len(wrong) > 0.95 * len(experts)


def test_a_single_row_of_another_token_is_found(forwards):
    experts, logits = forwards[1]
    found = 0
    for row in range(len(experts)):
        swapped = experts.copy()
        swapped[row] = experts[row - 5]
        found += row in not_of_their_tokens(swapped, logits)

    assert found > 0.95 * len(experts)


def test_layers_that_are_shifted_fail(forwards):
    experts, logits = forwards[2]
    shifted = experts.copy()
    shifted[:, 1:] = np.roll(experts[:, 1:], 1, axis=1)

    assert len(not_of_their_tokens(shifted, logits)) > 0.95 * len(experts)
    with pytest.raises(AssertionError, match="dense layers have no rows"):
        assert_rows_are_of_their_tokens(np.roll(experts, 1, axis=1), logits)


def test_a_wrong_layer_after_right_ones_is_found(forwards):
    experts, logits = forwards[3]
    wrong = experts.copy()
    wrong[40, 5] = np.argsort(logits[40, 5])[:4]

    assert 40 in not_of_their_tokens(wrong, logits)
