"""Loud on replay: what a trainer gets wrong ends in one error that says so."""

import pytest

pytestmark = [pytest.mark.megatron, pytest.mark.slow]

STATE, MISMATCH = "replay_state", "replay_mismatch"
UNSUPPORTED, INCOMPLETE = "replay_unsupported", "replay_incomplete"

CASES = [
    ("forward_outside_of_step", STATE, "no open microbatch"),
    ("forward_without_microbatch", STATE, "no open microbatch"),
    ("second_forward_of_one_microbatch", STATE, "router call 2"),
    ("microbatch_that_is_not_executed", STATE, "[2, 3, 4]"),
    ("step_that_ends_before_the_forward", INCOMPLETE, "0 router calls for 1 microbatches"),
    ("step_without_microbatches", INCOMPLETE, "none may be 0"),
    ("step_without_backward", INCOMPLETE, "never recomputed"),
    ("step_inside_step", STATE, "inside step()"),
    ("microbatch_outside_of_step", STATE, "outside of step()"),
    ("too_few_rows", MISMATCH, "(s, b) = (11, 2)"),
    ("same_rows_in_another_shape", MISMATCH, "(s, b) = (24, 1)"),
    ("row_ids_of_another_batch", MISMATCH, "rows 0 to 23"),
    ("row_ids_that_are_floats", MISMATCH, "torch.float32"),
    ("another_number_of_experts", MISMATCH, "2 of 16 experts"),
    ("another_topk", MISMATCH, "1 of 8 experts"),
    ("layers_that_are_absent", MISMATCH, "[3]"),
    ("dense_plane_for_a_moe_layer", MISMATCH, "layers [2]"),
    ("all_rows_one_expert_plane_of_zeros_with_live_rows", MISMATCH, "layers [1, 2, 3]"),
    ("expert_twice_in_a_row", MISMATCH, "1 rows"),
    ("expert_out_of_range", MISMATCH, "1 rows"),
    ("vp_stage_that_is_no_chunk", STATE, "vp_stage=1"),
    ("backward_of_the_step_in_bypass", STATE, "inside bypass()"),
    ("backward_of_bypass_after_it", STATE, "without a forward"),
    ("step_after_disable", STATE, "after disable()"),
    ("disable_inside_step", STATE, "inside step()"),
    ("enabled_twice", UNSUPPORTED, "replayed already"),
    ("model_without_decoder", UNSUPPORTED, "neither `.decoder`"),
    ("decoder_without_layers", UNSUPPORTED, "no MoE layer found in its decoder (layers []"),
    ("dense_model", UNSUPPORTED, "num_moe_experts is None"),
    ("same_chunk_twice", UNSUPPORTED, "would both replay plane 1"),
    ("layer_map_with_a_hole", UNSUPPORTED, "layer 4 (1-based) is not in layer_map"),
    ("router_of_another_class", UNSUPPORTED, "layers [3]"),
    ("router_that_does_not_ask", UNSUPPORTED, "executed other experts"),
    ("weights_without_gradient", UNSUPPORTED, "carry no gradient"),
    ("two_decoders", UNSUPPORTED, "both `.decoder` and `.language_model.decoder`"),
]


@pytest.mark.parametrize(("case", "code", "words"), CASES, ids=[case for case, _, _ in CASES])
def test_misuse_ends_in_an_error_that_names_it(megatron, case, code, words):
    error = megatron.run("lifecycle.error_of", case=case)
    assert error is not None, f"{case} passed in silence"
    assert error["code"] == code, error["message"]
    assert words in error["message"]


def test_everything_that_cannot_be_replayed_is_listed_in_one_error(megatron):
    error = megatron.run("lifecycle.error_of", case="everything_at_once")
    assert error["type"] == "ReplayUnsupported"
    listed = [
        "moe_router_fusion",
        "expert capacity",
        "force_load_balancing",
        "mlp_chunks_for_training",
        "would both replay plane 1",
        "would both replay plane 3",
    ]
    assert [words for words in listed if words not in error["message"]] == []


def test_a_refusal_changes_nothing(megatron):
    assert megatron.run("lifecycle.refusal_changes_nothing") == {"untouched": True, "hooks": 0}


def test_probing_a_router_leaves_its_expert_bias_counter_alone(megatron):
    assert megatron.run("lifecycle.probe_is_without_effect")["untouched"]
