"""What a Hugging Face config says about routing, and whether a Megatron model agrees.

model = routed_model(AutoConfig.from_pretrained("Qwen/Qwen3-30B-A3B"))
packed = pack_thd(episodes, token_ids, cu_seqlens=cu_seqlens, model=model.shape)
replay = enable_router_replay(model_chunks, model=model)
"""

from routereplay.patches.megatron.models.agreement import (
    hybrid_layer_map,
    model_reasons,
    place_layers,
)
from routereplay.patches.megatron.models.errors import (
    DenseModel,
    InvalidModelConfig,
    ModelError,
    UnknownModel,
)
from routereplay.patches.megatron.models.families import (
    Family,
    register_model,
    registered_models,
)
from routereplay.patches.megatron.models.layer_rules import (
    dense_first,
    every_layer,
    every_nth_layer,
    hybrid_pattern,
)
from routereplay.patches.megatron.models.reading import routed_model
from routereplay.patches.megatron.models.routed_model import RoutedModel

__all__ = [
    "DenseModel",
    "Family",
    "InvalidModelConfig",
    "ModelError",
    "RoutedModel",
    "UnknownModel",
    "dense_first",
    "every_layer",
    "every_nth_layer",
    "hybrid_layer_map",
    "hybrid_pattern",
    "model_reasons",
    "place_layers",
    "register_model",
    "registered_models",
    "routed_model",
]
