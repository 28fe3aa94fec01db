"""A training job that is handed the path of a bundle replays it."""

import pytest

pytestmark = [pytest.mark.megatron, pytest.mark.slow]


@pytest.mark.parametrize("recompute", [None, "full"])
def test_a_bundle_replays_what_was_recorded(megatron, recompute):
    assert megatron.run("bundled.replays_what_was_recorded", recompute=recompute) == {
        "losses_equal": [True, True],
        "gradient_differences": [0.0, 0.0],
        "layers": [1, 2, 3],
        "another_batch_differs": True,
    }
