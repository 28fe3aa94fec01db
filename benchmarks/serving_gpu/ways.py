"""The ways of running a load: which server, and how far the rows of its requests go.

Between capture off and the whole recorder lie the stages that a row passes. Each way stops
one stage further on, on the same server, so that what a stage costs is the difference to the
way before it:

| way | rows go |
|---|---|
| off | nowhere: nothing is captured |
| captured | out of the model's kernels and to the host, and no further |
| scheduled | through the scheduler's account of them, and no further |
| received | to the front end, which takes them from vLLM and drops them |
| recorded | to the store |
| answered | into the response, by vLLM's own way |
"""

from __future__ import annotations

from dataclasses import dataclass, field

STAGE = "serving_gpu_stage"
"""Key of `vllm_xargs` for `StagedScheduler`: after which stage rows are dropped."""


@dataclass(frozen=True)
class Way:
    """One way of running a load."""

    name: str
    mode: str
    """The server: one of `servers.MODES`."""
    xargs: dict[str, str] = field(default_factory=dict)
    """`vllm_xargs` of every request."""

    @property
    def is_recorded(self) -> bool:
        """Whether the store must have every request."""
        return self.mode == "routereplay" and "record_routes" not in self.xargs


def _dropped(name: str, **xargs: str) -> Way:
    return Way(name, "routereplay", {"record_routes": "no", **xargs})


WAYS = {
    way.name: way
    for way in (
        Way("off", "off"),
        Way("json", "json"),
        Way("routereplay", "routereplay"),
        _dropped("captured", **{STAGE: "captured"}),
        _dropped("scheduled", **{STAGE: "scheduled"}),
        _dropped("received"),
        Way("recorded", "routereplay"),
        _dropped("answered", return_routed_experts="1"),
    )
}

SPLIT = ("off", "captured", "scheduled", "received", "recorded", "answered")
"""The stages, in the order that a row passes them."""
