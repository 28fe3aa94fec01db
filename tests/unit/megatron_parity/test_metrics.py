"""Every metric against a number that was computed by hand."""

import math

import numpy as np
import pytest

from routereplay.parity.metrics import (
    TopLogprobs,
    mean_abs_error,
    mean_abs_pct,
    route_mismatch,
    top1_agreement,
    top_kl,
    top_overlap,
)

CANDIDATE = np.array([-1.0, -2.0, -3.0])
TARGET = np.array([-1.5, -2.0, -1.5])


def top(ids, probabilities):
    return TopLogprobs(np.array(ids), np.log(np.array(probabilities)))


def test_mean_abs_error_is_the_mean_distance_in_nats():
    assert mean_abs_error(CANDIDATE, TARGET) == pytest.approx(2.0 / 3)


def test_mean_abs_pct_is_a_ratio_of_means():
    # mean|c - r| = 2/3, mean|r| = 5/3; a mean of ratios would be 44.4.
    assert mean_abs_pct(CANDIDATE, TARGET) == pytest.approx(40.0)


def test_mean_abs_pct_of_equal_zeros_is_zero():
    assert mean_abs_pct(np.zeros(3), np.zeros(3)) == 0.0


@pytest.mark.parametrize("metric", [mean_abs_pct, mean_abs_error])
@pytest.mark.parametrize("other", [np.zeros(2), np.zeros((3, 1)), np.zeros(0)])
def test_logprobs_of_other_shapes_are_refused(metric, other):
    with pytest.raises(ValueError, match="log-probs of shapes"):
        metric(other if not other.size else CANDIDATE, other)


def test_top1_agreement_compares_the_first_token_only():
    candidate = top([[1, 2], [3, 4]], [[0.5, 0.3], [0.5, 0.3]])
    target = top([[1, 9], [4, 3]], [[0.5, 0.3], [0.5, 0.3]])
    assert top1_agreement(candidate, target) == 0.5


def test_top_overlap_is_the_shared_part_of_the_sets():
    candidate = top([[1, 2], [3, 4]], [[0.5, 0.3], [0.5, 0.3]])
    target = top([[2, 1], [4, 9]], [[0.5, 0.3], [0.5, 0.3]])
    assert top_overlap(candidate, target) == pytest.approx((2 / 2 + 1 / 2) / 2)


def test_top_kl_matches_tokens_by_id_and_not_by_rank():
    candidate = top([[1, 2]], [[0.6, 0.2]])
    target = top([[2, 1]], [[0.4, 0.4]])
    # Over {1, 2} candidate is (0.75, 0.25), target (0.5, 0.5).
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert top_kl(candidate, target) == pytest.approx(expected)


def test_top_kl_is_from_candidate_to_target():
    sharp, flat = top([[1, 2]], [[0.9, 0.1]]), top([[1, 2]], [[0.5, 0.5]])
    forward = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    backward = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    assert top_kl(sharp, flat) == pytest.approx(forward)
    assert top_kl(flat, sharp) == pytest.approx(backward)


def test_top_kl_renormalises_over_shared_tokens_and_drops_the_others():
    candidate = top([[1, 2, 3]], [[0.3, 0.1, 0.5]])
    target = top([[1, 2, 4]], [[0.2, 0.2, 0.5]])
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert top_kl(candidate, target) == pytest.approx(expected)


def test_top_kl_leaves_out_positions_that_share_nothing():
    candidate = top([[1, 2], [5, 6]], [[0.6, 0.2], [0.6, 0.2]])
    target = top([[2, 1], [7, 8]], [[0.4, 0.4], [0.6, 0.2]])
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert top_kl(candidate, target) == pytest.approx(expected)


def test_top_kl_without_any_shared_token_is_not_a_number():
    assert math.isnan(top_kl(top([[1]], [[0.5]]), top([[2]], [[0.5]])))


def test_top_kl_of_the_same_distribution_is_zero():
    same = top([[1, 2, 3]], [[0.5, 0.3, 0.1]])
    assert top_kl(same, same) == 0.0


@pytest.mark.parametrize("metric", [top1_agreement, top_overlap, top_kl])
def test_top_logprobs_of_other_shapes_are_refused(metric):
    with pytest.raises(ValueError, match="top log-probs of shapes"):
        metric(top([[1, 2]], [[0.5, 0.3]]), top([[1]], [[0.5]]))


def test_route_mismatch_compares_sets_by_layer_and_by_row():
    # [T=4, L=2, K=2]; layer 0 is dense, layer 1 differs in one expert of rows 1 and 2.
    target = np.array([[[0, 0], [1, 2]], [[0, 0], [3, 4]], [[0, 0], [5, 6]], [[0, 0], [7, 1]]])
    candidate = np.array([[[0, 0], [2, 1]], [[0, 0], [3, 5]], [[0, 0], [1, 6]], [[0, 0], [7, 1]]])
    mismatch = route_mismatch(candidate.astype(np.uint8), target.astype(np.uint8))
    assert mismatch.rows == 0.5
    assert mismatch.per_layer.tolist() == [0.0, 0.5]
    assert mismatch.choices == pytest.approx(2 / 16)


def test_a_row_that_differs_in_two_layers_counts_once():
    target = np.array([[[1, 2], [1, 2]], [[1, 2], [1, 2]]], np.uint8)
    candidate = np.array([[[3, 4], [3, 2]], [[1, 2], [1, 2]]], np.uint8)
    mismatch = route_mismatch(candidate, target)
    assert mismatch.rows == 0.5
    assert mismatch.per_layer.tolist() == [0.5, 0.5]
    assert mismatch.choices == pytest.approx(3 / 8)


def test_routes_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match="routes of shapes"):
        route_mismatch(np.zeros((2, 3, 2)), np.zeros((2, 3, 4)))
