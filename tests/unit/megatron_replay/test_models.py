"""A Hugging Face config says which layers route, to how many experts, with which weights."""

import pytest

pytest.importorskip("megatron.core")

from support.model_configs import CONFIG_JSON, NEMOTRON_PATTERN

from routereplay.client import ModelShape
from routereplay.patches.megatron import (
    DenseModel,
    Family,
    InvalidModelConfig,
    RoutedModel,
    UnknownModel,
    register_model,
    routed_model,
)
from routereplay.patches.models import every_layer, families, registered_models

pytestmark = pytest.mark.megatron

# layers, the dense ones, experts, topk, score function, weights of a softmax sum to one, scale
RELEASED = {
    "Qwen3-30B-A3B": (48, (), 128, 8, "softmax", True, None),
    "Qwen3-Next-80B-A3B": (48, (), 512, 10, "softmax", True, None),
    "Qwen3.5-35B-A3B": (40, (), 256, 8, "softmax", True, None),
    "DeepSeek-V2-Lite": (27, (0,), 64, 6, "softmax", False, 1.0),
    "DeepSeek-V3": (61, (0, 1, 2), 256, 8, "sigmoid", True, 2.5),
    "Kimi-K2": (61, (0,), 384, 8, "sigmoid", True, 2.827),
    "Kimi-K2.5": (61, (0,), 384, 8, "sigmoid", True, 2.827),
    "GLM-4.5": (92, (0, 1, 2), 160, 8, "sigmoid", True, 2.5),
    "GLM-4.6": (92, (0, 1, 2), 160, 8, "sigmoid", True, 2.5),
    "GLM-4.5-Air": (46, (0,), 128, 8, "sigmoid", True, 1.0),
    "gpt-oss-20b": (24, (), 32, 4, "softmax", True, None),
    "MiniMax-M2": (62, (), 256, 8, "sigmoid", None, None),
    "Mixtral-8x7B": (32, (), 8, 2, "softmax", True, None),
    "OLMoE-1B-7B": (16, (), 64, 8, "softmax", False, None),
    "Moonlight-16B-A3B": (27, (0,), 64, 6, "sigmoid", True, 2.446),
}


@pytest.fixture
def own_registry(monkeypatch):
    monkeypatch.setattr(families, "_FAMILIES", dict(families._FAMILIES))


def tiny(**fields):
    plain = {
        "model_type": "qwen3_moe",
        "num_hidden_layers": 6,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "norm_topk_prob": True,
    }
    return plain | fields


@pytest.mark.parametrize("name", RELEASED)
def test_the_config_json_of_a_released_model_is_read_as_it_is_built(name):
    model = routed_model(CONFIG_JSON[name])
    found = (
        model.num_layers,
        model.dense_layers,
        model.num_experts,
        model.topk,
        model.score_function,
        model.renormalizes,
        model.scaling_factor,
    )
    assert found == RELEASED[name]


def test_every_other_layer_routes_with_a_sparse_step_of_two():
    assert routed_model(tiny(decoder_sparse_step=2)).moe_layers == (1, 3, 5)


def test_a_layer_that_is_mlp_only_does_not_route():
    assert routed_model(tiny(mlp_only_layers=[0, 4])).moe_layers == (1, 2, 3, 5)


def test_a_moe_layer_frequency_counts_from_layer_zero_after_the_dense_ones():
    config = tiny(
        model_type="deepseek_v3",
        first_k_dense_replace=1,
        moe_layer_freq=2,
        n_routed_experts=8,
    )
    assert routed_model(config).moe_layers == (2, 4)


def test_a_hybrid_pattern_routes_where_it_says_e():
    model = routed_model(CONFIG_JSON["Nemotron-3-Nano"])
    assert model.num_layers == len(NEMOTRON_PATTERN)
    assert [NEMOTRON_PATTERN[layer_idx] for layer_idx in model.moe_layers] == ["E"] * 23


def test_layers_of_multi_token_prediction_are_no_decoder_layers():
    with_mtp = CONFIG_JSON["DeepSeek-V3"]
    assert with_mtp["num_nextn_predict_layers"] == 1
    assert routed_model(with_mtp) == routed_model(with_mtp | {"num_nextn_predict_layers": 0})


def test_shared_experts_are_not_counted():
    with_shared = CONFIG_JSON["DeepSeek-V2-Lite"]
    assert with_shared["n_shared_experts"] == 2
    assert routed_model(with_shared).num_experts == with_shared["n_routed_experts"]


def test_the_text_config_of_a_multimodal_model_is_read():
    inner = tiny(model_type="qwen3_vl_moe_text")
    outer = {"model_type": "qwen3_vl_moe", "num_experts": 3, "text_config": inner}
    assert routed_model(outer) == routed_model(inner)


def test_a_text_config_without_a_type_takes_that_of_the_model_around_it():
    inner = {key: value for key, value in tiny().items() if key != "model_type"}
    model = routed_model({"model_type": "qwen3_moe", "text_config": inner})
    assert (model.model_type, model.num_experts) == ("qwen3_moe", 8)


def test_the_shape_and_dtype_are_what_packing_and_the_recorder_use():
    kimi = routed_model(CONFIG_JSON["Kimi-K2"])
    assert kimi.shape == ModelShape(num_layers=61, topk=8, num_experts=384)
    assert kimi.dtype == "uint16"
    assert routed_model(CONFIG_JSON["DeepSeek-V3"]).dtype == "uint8"


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "qwen3", "num_hidden_layers": 28, "hidden_size": 1024},
        {"model_type": "any", "num_hidden_layers": 2, "num_experts": None, "moe_layers": []},
        tiny(num_experts=0),
        tiny(mlp_only_layers=list(range(6))),
    ],
)
def test_a_dense_model_has_nothing_to_replay(config):
    with pytest.raises(DenseModel, match="nothing to replay") as caught:
        routed_model(config)
    assert caught.value.code == "dense_model"


def test_an_unknown_mixture_of_experts_says_how_to_register_it():
    with pytest.raises(UnknownModel) as caught:
        routed_model(tiny(model_type="brand_new_moe"))
    message = str(caught.value)
    assert caught.value.code == "unknown_model"
    assert "register_model('brand_new_moe', 'qwen3_moe')" in message
    assert "num_experts" in message
    assert all(name in message for name in registered_models())


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (tiny(num_experts=None, decoder_sparse_step=2), "no num_experts"),
        (tiny(num_experts_per_tok=None), "no num_experts_per_tok"),
        (tiny(num_hidden_layers=None), "no num_hidden_layers"),
        (tiny(num_hidden_layers="6"), "expected an integer"),
        (tiny(num_local_experts=16), "contradict"),
        (tiny(num_experts_per_tok=9), "9 with 8 experts"),
        (tiny(decoder_sparse_step=0), "expected 1 or more"),
        (tiny(model_type="deepseek_v3"), "no first_k_dense_replace"),
        (tiny(model_type="nemotron_h"), "no layers_block_type"),
        (
            tiny(
                model_type="deepseek_v32",
                first_k_dense_replace=2,
                mlp_layer_types=["dense"] + ["sparse"] * 5,
            ),
            "contradict",
        ),
        (tiny(model_type="deepseek_v32", mlp_layer_types=["sparse", "other"]), "'other'"),
    ],
)
def test_a_config_that_is_cut_or_contradicts_itself_is_refused(config, words):
    with pytest.raises(InvalidModelConfig, match=words) as caught:
        routed_model(config)
    assert caught.value.code == "invalid_model_config"


def test_what_is_no_config_is_a_type_error():
    with pytest.raises(TypeError, match="config.json"):
        routed_model("Qwen/Qwen3-30B-A3B")


@pytest.mark.usefixtures("own_registry")
def test_a_registered_model_is_known_from_then_on():
    config = {"model_type": "mine", "num_hidden_layers": 3, "experts": 12, "choices": 5}
    register_model(
        "mine",
        Family(every_layer, "softmax", True, experts_keys=("experts",), topk_keys=("choices",)),
    )
    model = routed_model(config)
    assert (model.moe_layers, model.num_experts, model.topk) == ((0, 1, 2), 12, 5)


@pytest.mark.usefixtures("own_registry")
def test_a_model_can_be_registered_to_route_like_another():
    register_model("mine", "qwen3_moe")
    assert routed_model(tiny(model_type="mine", decoder_sparse_step=2)).moe_layers == (1, 3, 5)


@pytest.mark.usefixtures("own_registry")
def test_registering_the_same_twice_is_the_same_and_something_else_is_refused():
    register_model("mine", "qwen3_moe")
    register_model("mine", "qwen3_moe")
    with pytest.raises(ValueError, match="routes otherwise"):
        register_model("mine", "mixtral")


def test_registering_like_an_unknown_model_is_refused():
    with pytest.raises(UnknownModel, match="'nothing' is not registered"):
        register_model("mine", "nothing")


@pytest.mark.parametrize(
    "fields",
    [
        {"moe_layers": ()},
        {"moe_layers": (1, 0)},
        {"moe_layers": (1, 1)},
        {"moe_layers": (4,)},
        {"topk": 9},
        {"topk": 0},
    ],
)
def test_a_model_described_by_hand_is_checked(fields):
    right = {"num_layers": 4, "moe_layers": (1, 3), "num_experts": 8, "topk": 2}
    assert RoutedModel("by-hand", **right).dense_layers == (0, 2)
    with pytest.raises(ValueError, match="by-hand"):
        RoutedModel("by-hand", **(right | fields))
