"""Router replay on stock transformers >= 5: recorded experts, live gradients.

Use::

    replay = enable_router_replay(model)
    with replay.step():
        replay.begin_microbatch(packed, row_ids)   # row_ids shaped like input_ids
        model(input_ids, labels=labels).loss.backward()
    with replay.bypass():
        ...                                        # reference pass, live routing
    replay.disable()
"""

from routereplay.patches.models import (
    DenseModel,
    Family,
    InvalidModelConfig,
    ModelError,
    RoutedModel,
    UnknownModel,
    register_model,
    routed_model,
)
from routereplay.patches.replay.errors import (
    ReplayError,
    ReplayIncomplete,
    ReplayMismatch,
    ReplayMisrouted,
    ReplayStateError,
    ReplayUnsupported,
)
from routereplay.patches.replay.replay import RouterReplay
from routereplay.patches.replay.report import CanaryReading, RowCounts, StepReport
from routereplay.patches.transformers.enable import enable_router_replay
from routereplay.patches.transformers.weights import WEIGH, Weigh

__all__ = [
    "WEIGH",
    "CanaryReading",
    "DenseModel",
    "Family",
    "InvalidModelConfig",
    "ModelError",
    "ReplayError",
    "ReplayIncomplete",
    "ReplayMismatch",
    "ReplayMisrouted",
    "ReplayStateError",
    "ReplayUnsupported",
    "RoutedModel",
    "RouterReplay",
    "RowCounts",
    "StepReport",
    "UnknownModel",
    "Weigh",
    "enable_router_replay",
    "register_model",
    "routed_model",
]
