"""Rows that execute others' experts are told by the router itself."""

import pytest

pytestmark = [pytest.mark.megatron, pytest.mark.slow]


def test_a_models_own_routes_agree_wholly_in_all_layers_and_then_in_one_after_the_other(megatron):
    readings = [
        reading for step in megatron.run("watching.own_routes", drift=0.0) for reading in step
    ]
    assert [reading["layer_number"] for reading in readings] == [2, 3, 4, 2, 3]
    assert [reading["step"] for reading in readings] == [1, 1, 1, 2, 3]
    assert all(reading["strays"] == 0.0 for reading in readings)
    assert all(reading["overlap"] == reading["worst"] == 1.0 for reading in readings)
    assert all(reading["rows"] == 512 for reading in readings)
    assert all(share < 0.6 for reading in readings for share in reading["others"].values())


def test_routers_that_moved_a_little_agree_on_most_experts_and_train_on(megatron):
    steps = megatron.run("watching.own_routes", drift=0.1)
    readings = [reading for step in steps for reading in step]
    assert all(0.8 < reading["overlap"] < 1.0 for reading in readings)
    assert all(reading["strays"] < 0.05 for reading in readings)


def test_the_canary_looks_every_so_many_steps_at_the_layer_it_is_told(megatron):
    readings = megatron.run("watching.own_routes", drift=0.0, every=2, steps=4, layer=3)
    assert [[(r["step"], r["layer_number"]) for r in step] for step in readings] == [
        [(1, 3)],
        [],
        [(3, 3)],
        [],
    ]


def test_a_canary_switched_off_says_nothing(megatron):
    assert megatron.run("watching.own_routes", drift=0.0, every=0, steps=1) == [[]]


@pytest.mark.parametrize("drift", [0.0, 0.1])
@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        ("rows_late", "another arrangement: rows one late"),
        ("rows_early", "another arrangement: rows one early"),
        ("layers_swapped", "another arrangement: next MoE layer"),
        ("batch_major", "another arrangement: batch-major rows"),
        ("trajectories_swapped", "for unrelated rows: chance"),
    ],
)
def test_a_known_mistake_stops_the_first_step_by_its_name(megatron, mistake, words, drift):
    facts = megatron.run("watching.mistake", name=mistake, drift=drift)
    assert facts["code"] == "replay_misrouted"
    assert words in facts["message"]
    assert "layer 2 (1-based), step 1" in facts["message"]


def test_rows_of_another_context_rank_stop_the_first_step(megatron):
    assert "for unrelated rows: chance" in megatron.run("watching.wrong_context_rank")


def test_a_stretch_of_wrong_rows_is_found_among_right_ones(megatron):
    facts = megatron.run("watching.mistake", name="half_of_another_batch", length=1024)
    assert facts["code"] == "replay_misrouted"
    assert "over all rows" in facts["message"]


@pytest.mark.parametrize("drift", [0.0, 0.1])
def test_a_part_of_the_rows_that_are_not_their_own_stops_the_first_step(megatron, drift):
    facts = megatron.run("watching.mistake", name="a_quarter_stale", drift=drift)
    assert facts["code"] == "replay_misrouted"
    assert "of the rows execute experts that are not theirs" in facts["message"]


def test_a_wrong_layer_is_found_in_the_first_step_whichever_it_is(megatron):
    facts = megatron.run("watching.mistake", name="last_layer_drafted")
    assert facts["code"] == "replay_misrouted"
    assert "layer 4 (1-based), step 1" in facts["message"]


def test_all_layers_are_compared_until_there_were_rows_enough_to_judge(megatron):
    steps = megatron.run("watching.own_routes", drift=0.0, length=64)
    found = [[(r["layer_number"], r["judged"]) for r in readings] for readings in steps]
    assert found == [[(2, False), (3, False), (4, False)]] * 3


def test_too_few_rows_are_reported_and_not_judged(megatron):
    facts = megatron.run("watching.mistake", name="rows_late", length=64)
    assert facts["code"] is None
    assert facts["reading"]["others"]["rows one late"] > facts["reading"]["overlap"] + 0.3


def test_rows_without_routes_do_not_count(megatron):
    facts = megatron.run("watching.rows_without_routes")
    assert facts["rows"] == [512, 256, 256]
    assert facts["reading"]["rows"] == 512
    assert facts["reading"]["overlap"] > 0.8
