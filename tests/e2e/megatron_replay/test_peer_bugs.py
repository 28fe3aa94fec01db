"""What went wrong in other implementations of router replay, each a test.

| bug, and who met it | test |
|---|---|
| ids repeat, zeros as padding (verl 4986, NeMo-RL 3208) | test_misuse.py, test_mutations.py |
| padding on one expert: a rank runs out of memory (miles 2697, slime 941, SkyRL 2091) | \
unit/client/test_packing.py: padding rows are distinct and spread over every rank |
| too few rows: the last tokens get no expert | test_misuse.py, test_mutations.py |
| a decoder built twice leaves orphans (verl 7340, miles 2570) | here |
| multi-token prediction replays the decoder (NeMo-RL 3903, Megatron-LM 7404) | here |
| dense layers counted as MoE (slime 819, verl 5452) | test_layouts.py: layers of each rank |
| padded THD slots under virtual stages (verl 7106, 7786, 7805) | \
test_layouts.py: pp2-vpp2-thd |
| same length or one less (ms-swift 9799); the boundary token of two turns (prime-rl 1807) | \
test_mutations.py; unit/client/test_stitching.py: the boundary token takes its row from the \
next turn |
| rows that the engine lost (NeMo-RL's vLLM worker, SGLang 36404) | test_mutations.py: last \
row of a request; unit/client/test_stitching.py: a turn without routes raises |
| reference and teacher passes replay (NeMo-RL 4083) | test_replay.py: bypass routes live |
| 45 GB to every stage (verl 6211) | test_replay.py: routes that begin at a later layer; \
unit/megatron_replay/test_staging.py |
| more than 256 experts in a byte (SkyRL 2091, prime-rl 3350, ms-swift) | test_replay.py: uint16 |
| recompute chooses otherwise on a near-tie (Automodel 3156) | here |
| torch.compile recompiles for each microbatch (ART 722, 723) | here |
| scores taken after the top-k: zero weight, no gradient (verl-lite 49, 79) | here |
| models that pack inside forward (Megatron-Bridge, Qwen3-VL) | test_misuse.py: the same rows \
in another shape |

A CPU cannot show the memory of a hot rank, the crash of DeepEP's buffers, or the volume
on a wire: the tests show the rows that would cause them.
"""

import pytest

pytestmark = [pytest.mark.megatron, pytest.mark.slow]


def test_a_decoder_that_was_built_twice_replays_in_the_one_that_runs(megatron):
    assert megatron.run("peers.decoder_built_twice") == {
        "layers": [2, 3, 4],
        "equal": True,
        "in_the_native_list": 6,
        "orphans_untouched": True,
    }


def test_multi_token_prediction_trains_on_its_own_choice(megatron):
    assert megatron.run("peers.multi_token_prediction") == {
        "layers": [1, 2, 3, 4],
        "equal": True,
        "outside": [True],
        "outside_called": 2,
        "outside_trained": [True],
    }


@pytest.mark.parametrize("replayed", [True, False])
def test_live_rows_keep_their_first_choice_although_the_router_moved(megatron, replayed):
    facts = megatron.run("peers.router_that_moves_before_its_recompute", replayed=replayed)
    assert facts["recompute_repeats"] == replayed


def test_a_compiled_router_replays_every_microbatch_without_compiling_again(megatron):
    facts = megatron.run("peers.compiled_router")
    assert facts["equal"] == [True] * 4
    assert facts["graphs"] > 0


def test_experts_far_from_the_top_have_their_own_weight(megatron):
    facts = megatron.run("peers.weights_of_experts_far_from_the_top")
    assert facts["count"] == [48] * 3
    assert facts["smallest"] > 0.1


def test_adapters_on_experts_train_the_same_and_nothing_else_changes(megatron):
    facts = megatron.run("peers.adapters_on_experts")
    assert facts["adapters"] == 25
    assert facts["all_adapters_trained"]
    assert facts["frozen_trained"] == []
    assert facts["parameters_unchanged"]
    assert facts["loss_equal"]
    assert facts["gradient_difference"] == facts["difference_after_disable"] == 0.0
