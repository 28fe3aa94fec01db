"""Ranks that hang or fail say where: no run ends in silence."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from routereplay.parity.errors import EngineFailed
from routereplay.parity.rank_running import run_ranks
from routereplay.parity.topology import Topology

RANK = """
import sys, time
from routereplay.parity.rank_process import answer_stacks

def wait_for_the_other():
    time.sleep(60)

answer_stacks()
print("groups open", flush=True)
if sys.argv[2] == "{who}":
    {what}
"""


def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, who: int, what: str, *, s: float) -> None:
    (tmp_path / "odd_rank.py").write_text(RANK.format(who=who, what=what))
    monkeypatch.setenv("PYTHONPATH", ":".join([str(tmp_path), *sys.path]))
    run_ranks(Topology.parse("tp2"), tmp_path, s, module="odd_rank")


def test_a_rank_that_hangs_is_asked_for_its_stack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = time.monotonic()
    with pytest.raises(EngineFailed, match=r"tp2.* did not end within 1 s") as error:
        run(tmp_path, monkeypatch, 1, "wait_for_the_other()", s=1.0)
    assert time.monotonic() - begin < 30
    said = error.value.message
    assert "in wait_for_the_other" in said[said.index("rank 1:") :]
    assert "groups open" in said[said.index("rank 0:") : said.index("rank 1:")]


def test_the_rank_that_failed_is_blamed_not_the_one_that_waited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    what = "sys.exit('no such checkpoint')\nelse: wait_for_the_other()"
    with pytest.raises(EngineFailed, match=r"last lines of rank 1:\ngroups open\nno such") as error:
        run(tmp_path, monkeypatch, 1, what, s=50.0)
    assert "ended with [-9, 1]" in error.value.message


def test_ranks_that_end_well_are_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, monkeypatch, 1, "pass", s=50.0)
