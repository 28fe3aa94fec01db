"""`Binding`: our object in the place that Megatron-Core keeps for a router's replay."""

from __future__ import annotations

import logging
from typing import Any

from routereplay.patches.megatron.discovery import FoundRouter
from routereplay.patches.megatron.layer import MegatronLayer

logger = logging.getLogger(__name__)


class Binding:
    """One router with our object on it; `undo` puts back what was there."""

    def __init__(self, found: FoundRouter, layer: MegatronLayer) -> None:
        self._router: Any = found.router
        self._layer = layer
        self._previous = found.router.router_replay
        self._router.router_replay = layer
        self._hook = found.router.register_forward_pre_hook(layer.check_input, with_kwargs=True)

    def undo(self) -> None:
        """Put back what was there, unless somebody replaced ours meanwhile."""
        self._hook.remove()
        if self._router.router_replay is self._layer:
            self._router.router_replay = self._previous
        else:
            logger.warning(
                "router replay: layer %d (1-based) holds another router_replay by now; left there",
                self._layer.layer_number,
            )
