"""How a Megatron model is spread over ranks, said in one word: `tp2-ep2-pp2`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

_PART = re.compile(r"(tp|pp|ep)(\d+)")


@dataclass(frozen=True, slots=True)
class Topology:
    """Sizes of the parallel groups; tensor parallelism brings sequence parallelism.

    Experts are cut over `ep` ranks and never inside (expert tensor parallelism is 1).
    """

    tp: int = 1
    pp: int = 1
    ep: int = 1

    @classmethod
    def parse(cls, text: str) -> Topology:
        """Read `tp2`, `tp2-ep2-pp2` or `1`, in any order.

        Raises:
            ValueError: another word, or a size named twice.
        """
        sizes: dict[str, int] = {}
        for word in text.strip().lower().split("-"):
            if word == "1":
                continue
            match = _PART.fullmatch(word)
            if match is None or match[1] in sizes or not int(match[2]):
                msg = (
                    f"topology {text!r}: {word!r} is not one of tpN, ppN, epN, each at most once; "
                    "for example 1, tp2, ep2, pp2, tp2-ep2-pp2"
                )
                raise ValueError(msg)
            sizes[match[1]] = int(match[2])
        return cls(**sizes)

    @property
    def world_size(self) -> int:
        """The fewest ranks that hold it: experts lie on the ranks of tensor parallelism first."""
        return self.pp * math.lcm(self.tp, self.ep)

    @property
    def data_parallel(self) -> int:
        """How many ranks score other rows than each other."""
        return self.world_size // (self.tp * self.pp)

    def group_sizes(self) -> dict[str, int]:
        """Return the sizes as Megatron-Core's configuration and `initialize_model_parallel` do."""
        return {
            "tensor_model_parallel_size": self.tp,
            "pipeline_model_parallel_size": self.pp,
            "expert_model_parallel_size": self.ep,
            "expert_tensor_parallel_size": 1,
        }

    def __str__(self) -> str:
        sizes = {"tp": self.tp, "ep": self.ep, "pp": self.pp}
        return "-".join(f"{name}{size}" for name, size in sizes.items() if size > 1) or "1"
