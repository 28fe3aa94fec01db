"""Where the routes of a microbatch came from, counted on the host while it is staged."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from routereplay.client.packed import PackedRoutes


@dataclass(slots=True)
class RouteOrigins:
    """Rows of a step by where their routes came from.

    Of this rank's rows, each counted once for each microbatch; of all rows of the batch
    where the row ids lie on a device, which the host does not read.
    """

    recorded: int = 0
    """Rows with a route."""

    live: int = 0
    """Real tokens without one."""

    missing: int = 0
    """Of those, tokens whose route was lost; the last token of a sequence never has one."""

    policy_versions: dict[str, int] = field(default_factory=dict)
    """Recorded rows by the policy that routed them; the others' is not known."""

    def add(self, other: RouteOrigins) -> None:
        """Add the rows of another microbatch."""
        self.recorded += other.recorded
        self.live += other.live
        self.missing += other.missing
        for version, count in other.policy_versions.items():
            self.policy_versions[version] = self.policy_versions.get(version, 0) + count


def origins_of(packed: PackedRoutes, rows_T: np.ndarray | None) -> RouteOrigins:
    """Count `rows_T` of `packed`, or all of its rows."""

    def picked(values: np.ndarray) -> np.ndarray:
        return values if rows_T is None else values[rows_T]

    live, padding = picked(packed.live), picked(packed.padding)
    total, live_rows = len(live), int(np.count_nonzero(live))
    origins = RouteOrigins(total - live_rows - int(np.count_nonzero(padding & ~live)), live_rows)
    if packed.missing is not None and live_rows:
        origins.missing = int(np.count_nonzero(picked(packed.missing) & live))
    if packed.policy is not None and packed.policy_versions:
        policy = picked(packed.policy)
        counts = np.bincount(policy[policy >= 0], minlength=len(packed.policy_versions))
        versions = zip(packed.policy_versions, counts.tolist(), strict=True)
        origins.policy_versions = {version: count for version, count in versions if count}
    return origins
