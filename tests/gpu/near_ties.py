"""Whether rows that were computed in bfloat16 are those of their tokens.

Rounding changes a choice only where experts are nearly tied, and what it changes in one layer
all later layers of that token follow, and through attention those of later tokens. So a row is
judged at the first layer where it differs: every expert that it names there must nearly be
among the reference's. In the model's first routed layer only rounding can have done it, and
the bound is narrow; the row of another token, or of another layer, differs there already.
Further up a row may have inherited what changed in other tokens, and the bound is wide.
"""

import logging

import numpy as np

logger = logging.getLogger(__name__)

ROUNDED = 0.2
"""How far below the reference's last choice a router's logit may be in the first routed layer.
Logits spread by 2. transformers' own forward in bfloat16 needs 0.05 at most in 32,000 rows, and
0.09 in 28,000 with an adapter."""
INHERITED = 1.0
"""The same in later layers, where that forward needs 0.60 at most."""
AGREEING = 0.9
"""Of all layer-rows; that forward has 0.97."""


def not_of_their_tokens(experts_TLK, logits_TLE):
    """Return the indices of the rows that cannot be their tokens'."""
    return np.flatnonzero(shortfall(experts_TLK, logits_TLE) > 1)


def shortfall(experts_TLK, logits_TLE):
    """Return how far each row falls short at the first layer where it differs, in its bound."""
    agree_TL, short_TL = _compared(experts_TLK, logits_TLE)
    first = (~agree_TL).argmax(axis=-1)
    short = np.take_along_axis(short_TL, first[:, None], axis=-1)[:, 0]
    return np.where(agree_TL.all(axis=-1), 0, short / np.where(first == 0, ROUNDED, INHERITED))


def assert_rows_are_of_their_tokens(experts_TLK, logits_TLE):
    """Every row is its token's, dense layers have none, and most layer-rows are equal."""
    short = shortfall(experts_TLK, logits_TLE)
    wrong = np.flatnonzero(short > 1)
    agreeing = _compared(experts_TLK, logits_TLE)[0].mean()
    logger.info("%d rows: %.2f of the bound, %.3f agree", len(short), short.max(), agreeing)

    assert not experts_TLK[:, ~logits_TLE.any(axis=(0, 2))].any(), "dense layers have no rows"
    assert not len(wrong), (
        f"rows {wrong[:8]} of {len(experts_TLK)} are not their tokens': "
        f"{short[wrong[:8]].round(2)} times what is allowed"
    )
    assert agreeing > AGREEING, f"{agreeing:.1%} of layer-rows agree"


def _compared(experts_TLK, logits_TLE):
    """Of routed layers: whether the experts are the reference's, and how far below its last
    choice the least likely of them is."""
    assert experts_TLK.shape[:2] == logits_TLE.shape[:2]
    routed = logits_TLE.any(axis=(0, 2))
    experts_TLK = np.sort(experts_TLK[:, routed].astype(int), axis=-1)
    logits_TLE = logits_TLE[:, routed]
    chosen_TLK = np.argsort(-logits_TLE, axis=-1)[..., : experts_TLK.shape[-1]]
    last_TL = np.take_along_axis(logits_TLE, chosen_TLK, axis=-1).min(axis=-1)
    lowest_TL = np.take_along_axis(logits_TLE, experts_TLK, axis=-1).min(axis=-1)
    return (experts_TLK == np.sort(chosen_TLK, axis=-1)).all(axis=-1), last_TL - lowest_TL
