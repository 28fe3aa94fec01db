"""Router replay on stock Megatron-Core >= 0.16: recorded experts, live gradients.

Use::

    replay = enable_router_replay(model_chunks)
    with replay.step():
        forward_backward_func(...)  # forward_step calls replay.begin_microbatch(packed, row_ids)
    with replay.bypass():
        ...                         # reference or teacher pass, live routing
    replay.disable()
"""

from routereplay.patches.megatron.enable import enable_router_replay
from routereplay.patches.megatron.placement import (
    context_parallel_rows_padded,
    context_parallel_rows_thd,
)
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
from routereplay.patches.replay.origins import RouteOrigins
from routereplay.patches.replay.recording import Recording
from routereplay.patches.replay.replay import RouterReplay
from routereplay.patches.replay.report import CanaryReading, RowCounts, StepReport
from routereplay.patches.replay.watch import (
    PrometheusLogger,
    ReplayWatch,
    tensorboard_logger,
)

__all__ = [
    "CanaryReading",
    "DenseModel",
    "Family",
    "InvalidModelConfig",
    "ModelError",
    "PrometheusLogger",
    "Recording",
    "ReplayError",
    "ReplayIncomplete",
    "ReplayMismatch",
    "ReplayMisrouted",
    "ReplayStateError",
    "ReplayUnsupported",
    "ReplayWatch",
    "RouteOrigins",
    "RoutedModel",
    "RouterReplay",
    "RowCounts",
    "StepReport",
    "UnknownModel",
    "context_parallel_rows_padded",
    "context_parallel_rows_thd",
    "enable_router_replay",
    "register_model",
    "routed_model",
    "tensorboard_logger",
]
