"""Errors of the model registry.

ModelError              model: what a config says about routing cannot be used
├─ UnknownModel         unknown_model: a mixture of experts that nobody registered
├─ DenseModel           dense_model: no experts, nothing to replay
└─ InvalidModelConfig   invalid_model_config: a key is missing, or keys contradict each other
"""

from __future__ import annotations

from routereplay.patches.replay.errors import ReplayError


class ModelError(ReplayError):
    """What a config says about routing cannot be used."""

    code = "model"


class UnknownModel(ModelError):
    """A mixture of experts of a `model_type` that is not registered."""

    code = "unknown_model"


class DenseModel(ModelError):
    """The model has no routed experts; train it without replay."""

    code = "dense_model"


class InvalidModelConfig(ModelError):
    """The config lacks a key that its family has, or its keys contradict each other."""

    code = "invalid_model_config"
