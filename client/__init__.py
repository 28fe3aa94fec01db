"""Fetch routes, stitch turns to trajectories, pack them for training.

Use::

    with RouteStoreClient("http://127.0.0.1:8400") as store:
        episodes = store.fetch_trajectories(ids, wait_s=30, progress=True)
    packed = pack_thd(episodes, token_ids, cu_seqlens=cu_seqlens)
"""

from routereplay.client._bundle_manifest import BundledTrajectory
from routereplay.client._bundle_saving import BundleBatch
from routereplay.client.async_client import AsyncRouteStoreClient
from routereplay.client.blocking_client import RouteStoreClient
from routereplay.client.bundle import ReplayBundle
from routereplay.client.errors import (
    BundleNotFound,
    CoverageError,
    MisalignedRoutes,
    MissingRoutes,
    PoisonedRoutes,
)
from routereplay.client.packed import ModelShape, PackedRoutes
from routereplay.client.packing import balanced_experts, pack_padded, pack_thd, unrouted
from routereplay.client.stitching import StitchedRoutes, stitch
from routereplay.client.trajectory import Trajectory

__all__ = [
    "AsyncRouteStoreClient",
    "BundleBatch",
    "BundleNotFound",
    "BundledTrajectory",
    "CoverageError",
    "MisalignedRoutes",
    "MissingRoutes",
    "ModelShape",
    "PackedRoutes",
    "PoisonedRoutes",
    "ReplayBundle",
    "RouteStoreClient",
    "StitchedRoutes",
    "Trajectory",
    "balanced_experts",
    "pack_padded",
    "pack_thd",
    "stitch",
    "unrouted",
]
