"""Limits by family, and what is over them."""

import dataclasses
import math

import pytest

from routereplay.parity.comparison import Mismatch
from routereplay.parity.gates import Gates

COLUMN = Mismatch(4.5, 0.01, 0.9, 0.95, 0.0015, 0.0015, 0.0, 0.0, (0.0,))


@pytest.mark.parametrize(
    ("family", "pct"),
    [("dense", 4.0), ("qwen3_moe", 7.0), ("qwen3_5_moe", 5.0), ("qwen3_6_moe", 5.0), ("x", 7.0)],
)
def test_each_family_has_its_limits(family, pct):
    assert Gates.of_family(family) == Gates(pct, 0.002)


def test_a_limit_that_is_given_wins():
    assert Gates.of_family("dense", mean_abs_pct=0.0, top20_kl=1.0) == Gates(0.0, 1.0)


def test_what_is_over_a_limit_is_named():
    assert Gates(5.0, 0.002).exceeded(COLUMN) == []
    (pct,) = Gates(4.0, 0.002).exceeded(COLUMN)
    assert "mean_abs_pct 4.500 % > 4 %" in pct
    (kl,) = Gates(5.0, 0.001).exceeded(COLUMN)
    assert "KL 1.500e-03 > 0.001" in kl


def test_no_number_is_over_every_limit():
    column = dataclasses.replace(COLUMN, mean_abs_pct=math.nan, top20_kl=math.nan)
    assert len(Gates(100.0, 1.0).exceeded(column)) == 2
