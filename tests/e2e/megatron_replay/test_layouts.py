"""Processes of the real Megatron-Core in every parallel layout, against one alone.

All layouts of a release run in one pair of processes (`ranks.py`), and those that combine
several kinds in four; each test reads what its layout left. The reference is the whole
model without replay, its routers handed their experts by a few lines of the test
(`reference.py`).

What processes on a CPU cannot show: attention under context parallelism and on packed
rows needs Transformer Engine, so a token-wise module stands in its place; expert-parallel
communication that overlaps needs CUDA streams; the flex dispatcher needs DeepEP.
Megatron-Core itself refuses to train tensor parallelism without sequence parallelism, so
there a log-prob pass is compared.
"""

import json

import pytest
from e2e.megatron_replay.distance import NEAR, distance_of, limit_of
from e2e.megatron_replay.layouts import (
    COMBINED,
    COMBINED_CASES,
    EVERY_CASE,
    FAULTS,
    FEW_CASES,
    LAYOUTS,
    MICROBATCHES,
    MISTAKES,
    MOE_LAYERS,
    NEWEST_CASES,
)
from e2e.megatron_replay.releases import OUTERMOST, RELEASES

pytestmark = [pytest.mark.megatron, pytest.mark.slow]

WORLD_SIZE = 2
TRAINED = [
    case
    for case in EVERY_CASE
    if (layout := LAYOUTS.get(case.split("@")[0])) and not layout.scores_only
]
FULL = [case for case in TRAINED if case.endswith("@full")]
outermost = pytest.mark.parametrize("release_folder", OUTERMOST, indirect=True)
newest = pytest.mark.parametrize("release_folder", RELEASES[-1:], indirect=True)
between = pytest.mark.parametrize("release_folder", RELEASES[1:-1], indirect=True)


class LayoutRuns:
    """What the processes of one release left behind."""

    def __init__(self, world_size, folder):
        self._world_size = world_size
        self._folder = folder

    def ranks(self, case):
        """Return the facts of every rank."""
        files = [self._folder / f"{case}-{rank}.json" for rank in range(self._world_size)]
        if not all(file.exists() for file in files):
            logs = [log.read_text()[-3000:] for log in sorted(self._folder.glob("log-*"))]
            pytest.fail(f"{case} did not end:\n" + "\n".join(logs))
        return [json.loads(file.read_text()) for file in files]


def run_layouts(megatron, cases, world_size, folder):
    """Run `cases` one after the other on `world_size` processes."""
    megatron.run("nursery.run", world_size=world_size, folder=str(folder), cases=cases)
    return LayoutRuns(world_size, folder)


@pytest.fixture(scope="session")
def runs(megatron, release_folder, tmp_path_factory):
    release = release_folder[0]
    cases = EVERY_CASE if release in OUTERMOST else FEW_CASES
    cases += NEWEST_CASES if release == RELEASES[-1] else ()
    return run_layouts(megatron, cases, WORLD_SIZE, tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="session")
def combined_runs(megatron, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    return run_layouts(megatron, COMBINED_CASES, 2 * WORLD_SIZE, folder)


def check_equal(case, ranks):
    layout = (LAYOUTS | COMBINED)[case.split("@")[0]]
    whole = ranks[0]["reference_gradients"]
    assert {name for rank in ranks for name in rank["differences"]} == set(whole)
    assert min(whole.values()) > 0
    assert distance_of(ranks).over(limit_of(layout)) == []
    assert all(rank["scored_equal"] for rank in ranks)
    assert all(rank.get("update_moved_losses", True) for rank in ranks)
    assert [rank["wrongly_recorded"] for rank in ranks] == [[]] * len(ranks)
    assert [tuple(rank["layers"]) for rank in ranks] == list(layout.layers)


@outermost
@pytest.mark.parametrize("case", TRAINED)
def test_losses_and_every_gradient_equal_those_of_one_process(runs, case):
    check_equal(case, runs.ranks(case))


@between
@pytest.mark.parametrize("case", FEW_CASES)
def test_the_releases_between_train_the_same(runs, case):
    check_equal(case, runs.ranks(case))


@newest
@pytest.mark.parametrize("case", [case for case in NEWEST_CASES if case.count("@") == 2])
def test_routes_of_a_bundle_and_of_the_ranks_own_recording_train_the_same(runs, case):
    check_equal(case, runs.ranks(case))


@newest
@pytest.mark.parametrize("case", COMBINED_CASES)
def test_four_processes_that_combine_layouts_train_the_same(combined_runs, case):
    check_equal(case, combined_runs.ranks(case))


@outermost
@pytest.mark.parametrize("case", FULL)
def test_each_router_runs_once_a_microbatch_and_recomputes_once(runs, case):
    layout = LAYOUTS[case.split("@")[0]]
    microbatches = MICROBATCHES
    if not any(size and size > 1 for key, size in layout.sizes.items() if "expert" not in key):
        microbatches //= WORLD_SIZE  # Data parallel: a half of the microbatches each.
    for rank, layers in zip(runs.ranks(case), layout.layers, strict=True):
        assert rank["router_calls"] == rank["recomputes"] == len(layers) * microbatches


@outermost
@pytest.mark.parametrize("case", FULL)
def test_the_numbers_of_all_ranks_are_of_every_row_once(runs, case):
    layout = LAYOUTS[case.split("@")[0]]
    # Of 24 rows a padded batch has 2 last tokens; a packed one 3, and 8 padded slots.
    kinds = (
        {"replayed": 13, "live": 3, "padding": 8} if layout.packed else {"replayed": 22, "live": 2}
    )
    expected = {"replayed": 0, "live": 0, "padding": 0, "missing": 0} | {
        kind: rows * MICROBATCHES for kind, rows in kinds.items()
    }
    for rank, layers in zip(runs.ranks(case), layout.layers, strict=True):
        numbers = rank["numbers"]
        found = {kind: numbers[f"routereplay/rows_{kind}"] for kind in expected}
        assert found == (expected if layers else dict.fromkeys(expected, 0))
        if rank["losses"]:
            assert numbers["routereplay/logprob_error"] < 1e-6
            assert numbers["routereplay/ratio_max"] == pytest.approx(1.0, abs=3e-6)


@outermost
@pytest.mark.parametrize("name", ["cp2-zigzag", "cp2-zigzag-thd"])
def test_the_zigzag_helpers_give_the_rows_that_the_trainer_cuts(runs, name):
    assert [rank["helpers_agree"] for rank in runs.ranks(f"{name}@full")] == [True, True]


@outermost
def test_tensor_parallelism_without_sequence_parallelism_scores_and_may_not_train(runs):
    ranks = runs.ranks("tp2-without-sp@full")
    for rank in ranks:
        assert tuple(rank["layers"]) == MOE_LAYERS
        assert rank["losses"] == pytest.approx(rank["reference_losses"], abs=2e-6)
        assert "sequence parallelism" in rank["refusal"]


@outermost
@pytest.mark.parametrize("name", MISTAKES)
def test_row_ids_of_another_layout_show_in_gradients_and_hardly_in_losses(runs, name):
    distance = distance_of(runs.ranks(f"{name}@full"))
    assert distance.losses < 4e-3  # A thousandth of a loss.
    assert distance.gradients > 1.0
    assert distance.updates > 1.0


@newest
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_after_a_right_forward_shows_in_gradients_and_updates(runs, name):
    distance = distance_of(runs.ranks(f"{name}@full"))
    assert distance.over(NEAR)[0] == "gradients"  # Outputs and losses are right.
    assert distance.gradients > 0.1
    # Clipping takes a common factor out of the update; it shows in the norm.
    assert distance.updates > 0.1 or distance.norm > 0.1
