"""What a Hugging Face config says about routing.

model = routed_model(AutoConfig.from_pretrained("Qwen/Qwen3-30B-A3B"))
packed = pack_thd(episodes, token_ids, cu_seqlens=cu_seqlens, model=model.shape)
replay = enable_router_replay(model_chunks, model=model)  # holds the Megatron model to it
"""

from routereplay.patches.models.errors import (
    DenseModel,
    InvalidModelConfig,
    ModelError,
    UnknownModel,
)
from routereplay.patches.models.families import (
    Family,
    register_model,
    registered_models,
)
from routereplay.patches.models.layer_rules import (
    dense_first,
    every_layer,
    every_nth_layer,
    hybrid_pattern,
)
from routereplay.patches.models.reading import routed_model
from routereplay.patches.models.routed_model import RoutedModel

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
    "hybrid_pattern",
    "register_model",
    "registered_models",
    "routed_model",
]
