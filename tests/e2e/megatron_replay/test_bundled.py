"""A training job that is handed the path of a bundle replays it, on any layout.

The layouts are in test_layouts.py (`@bundle`); what `ReplayBundle` itself refuses, in
tests/unit/client/test_bundle.py.
"""

import pytest

pytestmark = [pytest.mark.megatron, pytest.mark.slow]


@pytest.mark.parametrize("recompute", [None, "full"])
def test_a_bundle_replays_what_was_recorded(megatron, recompute):
    assert megatron.run("bundled.replays_what_was_recorded", recompute=recompute) == {
        "losses_equal": [True, True],
        "gradient_differences": [0.0, 0.0],
    }


AT_ENABLE = [
    ("nothing_there", "BundleNotFound", "absent"),
    ("torn", "CorruptRecord", "batch-00001"),
    ("another_model", "ReplayMismatch", "2 of 16 experts"),
    ("another_config", "InvalidRoutes", "num_layers=3"),
]
AT_BEGIN = [
    ("flipped", "CorruptRecord", "layer 3"),
    ("other_tokens", "MisalignedRoutes", "row 0 was saved for token"),
    ("rows_one_early", "MisalignedRoutes", "check row_ids"),
    ("fewer_tokens", "MisalignedRoutes", "22 token_ids and 24 row_ids"),
    ("batch_that_is_not_there", "IndexError", "range"),
    ("no_bundle", "ReplayStateError", "routereplay_bundle=path"),
]


@pytest.mark.parametrize(("case", "error", "words"), AT_ENABLE, ids=[c for c, *_ in AT_ENABLE])
def test_a_wrong_bundle_is_refused_before_anything_changes(megatron, case, error, words):
    raised = megatron.run("bundled.error_of", case=case)
    assert raised is not None, f"{case} passed in silence"
    assert raised["type"] == error, raised["message"]
    assert words in raised["message"]
    assert raised["untouched"]


@pytest.mark.parametrize(("case", "error", "words"), AT_BEGIN, ids=[c for c, *_ in AT_BEGIN])
def test_routes_that_are_not_those_of_the_tokens_are_refused(megatron, case, error, words):
    raised = megatron.run("bundled.error_of", case=case)
    assert raised is not None, f"{case} passed in silence"
    assert raised["type"] == error, raised["message"]
    assert words in raised["message"]
