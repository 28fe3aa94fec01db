"""The releases of Megatron-Core that are tested, oldest first."""

RELEASES = ("0.16.1", "0.17.1", "0.18.2", "0.19.2")
OUTERMOST = (RELEASES[0], RELEASES[-1])
"""Run every layout; those between run one of each kind."""
