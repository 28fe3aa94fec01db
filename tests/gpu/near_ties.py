"""Whether rows that were computed in bfloat16 are those of their tokens.

Rounding changes a choice only where experts are nearly tied, and what it changes in one layer
all later layers of that token may follow. So a row is judged at the first layer where it
differs: every expert that it names there must nearly be among the reference's. The row of
another token names others in its very first layer.
"""

import numpy as np

NEARLY = 0.3
"""How far below the reference's last choice a router's logit may be; logits spread by 2. A
forward in bfloat16 was seen to need 0.21 at most, in 4,000 rows."""
AGREEING = 0.9
"""Of all layer-rows."""


def not_of_their_tokens(experts_TLK, logits_TLE):
    """Return the indices of the rows that cannot be their tokens'."""
    agree_TL, short_TL = _compared(experts_TLK, logits_TLE)
    first = (~agree_TL).argmax(axis=-1)
    short = np.take_along_axis(short_TL, first[:, None], axis=-1)[:, 0]
    return np.flatnonzero(~agree_TL.all(axis=-1) & (short > NEARLY))


def assert_rows_are_of_their_tokens(experts_TLK, logits_TLE):
    """Every row is its token's, dense layers have none, and most layer-rows are equal."""
    wrong = not_of_their_tokens(experts_TLK, logits_TLE)
    agreeing = _compared(experts_TLK, logits_TLE)[0].mean()

    assert not experts_TLK[:, ~logits_TLE.any(axis=(0, 2))].any(), "dense layers have no rows"
    assert not len(wrong), f"rows {wrong[:8]} of {len(experts_TLK)} are not their tokens'"
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
