"""How far the engines may be apart: limits by family, and what is over them."""

from __future__ import annotations

from dataclasses import dataclass

from routereplay.parity.comparison import Mismatch

KL_LIMIT = 0.002
"""Top-20 KL(Megatron || vLLM) in nats, of every family."""

DENSE = "dense"
_PCT_LIMITS = {
    DENSE: 4.0,
    "qwen3_moe": 7.0,
    "qwen3_5_moe": 5.0,
    "qwen3_5_moe_text": 5.0,
    "qwen3_6_moe": 5.0,
    "qwen3_6_moe_text": 5.0,
}


@dataclass(frozen=True, slots=True)
class Gates:
    """Limits on Megatron with replay against what vLLM sampled."""

    mean_abs_pct: float
    top20_kl: float

    @classmethod
    def of_family(
        cls, family: str, *, mean_abs_pct: float | None = None, top20_kl: float | None = None
    ) -> Gates:
        """Return the limits of a family, by Hugging Face's `model_type`, or those given.

        The limits are those by which ART gates the same figures; a mixture of experts that
        has none takes Qwen3-MoE's.
        """
        default = _PCT_LIMITS.get(family, _PCT_LIMITS["qwen3_moe"])
        return cls(
            default if mean_abs_pct is None else mean_abs_pct,
            KL_LIMIT if top20_kl is None else top20_kl,
        )

    def exceeded(self, column: Mismatch) -> list[str]:
        """Return what of a column is over a limit, or no number at all."""
        found = []
        # Written so that NaN, which compares false with everything, is over the limit.
        if not column.mean_abs_pct <= self.mean_abs_pct:
            found.append(f"mean_abs_pct {column.mean_abs_pct:.3f} % > {self.mean_abs_pct:g} %")
        if not column.top20_kl <= self.top20_kl:
            found.append(f"top-20 KL {column.top20_kl:.3e} > {self.top20_kl:g} nats")
        return found
