"""docs/compatibility.md: what was seen on real servers, what is expected, what is refused.

`./scripts/compatibility` runs the behaviour tests against real releases and gives their
results here: `python -m routereplay.cli.compatibility RESULTS.jsonl` keeps them in
`compatibility.json`, from which the page is made. Nothing on it is claimed by hand.
"""

from __future__ import annotations

import json
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeAlias

from routereplay.cli.surface import load_snapshot, misfits_of, unseen_bodies
from routereplay.patches.vllm.refusals import REFUSALS
from routereplay.patches.vllm.releases import BEFORE, FIRST

Results: TypeAlias = dict[str, dict[str, dict[str, Any]]]
"""Version, then behaviour, then `outcome` (`passed`, `failed`, `skipped`) and `reason`; and
`needs_tap`, whether its test fails on a server without the recorder, if that was tried."""

RESULTS = "compatibility.json"

_CUDA = " on CUDA"

_ENVIRONMENTS = {
    "0.26.0": "`scripts/vllm-cpu-capture` gives its CPU kernel the capture hook that it lacks",
    "0.28.0": "`scripts/vllm-cpu-capture` gives its kernel the hook",
    "0.29.0": "as 0.28.0",
    "0.30.0": "as released, with Triton's interpreter for speculation and adapters",
    "0.26.0 on CUDA": "as released, with CUDA graphs, on two H200",
    "0.31.0": "Triton's interpreter runs its kernels (`scripts/vllm-cpu-triton`)",
    "0.32.0": "as 0.31.0",
    "0.33.0": "nobody has built it for CPUs: its own Python over the compiled kernels of 0.32.0 "
    "(`scripts/vllm-python-of`)",
}
"""What was run, by version: CPU builds and what had to be added to them, or CUDA."""

_PYTHON_ONLY = frozenset({"0.33.0"})
"""Releases without a CPU build, whose own Python ran over the kernels of another."""

_NOT_ON_CPU = {
    "data parallel 2": "no all-to-all for experts: the first request would end the engine",
    "CUDA graphs": "no graphs",
}
"""What no CPU build can show, and why."""

_LEGEND = """\
**yes**: a test shows it. Empty: not run there. *Without the recorder*: the same test on a server
that does not record (`./scripts/compatibility --without-tap`) fails, as it must: what passes
there would prove nothing."""


_ON_CPU = {
    "async scheduling": "the CPU platform switches it off; a plugin of the test switches it on "
    "again, and vLLM's own `AsyncScheduler` runs",
    "LoRA": "an adapter of the attention; experts keep the CPU's kernel, as a CPU build lacks a "
    "part of Triton's (`moe_align_block_size`)",
    "new weights in mid-request": "other norms and embeddings, brought by a worker extension while "
    "the engine is paused; a CPU build has packed its matrices",
}
"""How the tests of a CPU build differ from what users of a GPU do."""

_ON_CUDA = """\
* Every row of these tests, but for those of the stream, equals vLLM's native one of its request bit
  for bit. 12,542 rows were compared with the float32 forward: the worst takes 12 % of what
  `tests/gpu/near_ties.py` allows a bfloat16 row below that forward's choice."""


def load_results() -> Results:
    """Return what the last runs have shown."""
    text = files("routereplay.cli").joinpath(RESULTS).read_text(encoding="utf-8")
    results: Results = json.loads(text)
    return results


def merged(results: Results, lines: list[dict[str, Any]]) -> Results:
    """Return results with those of a run in place of the older ones of its behaviours.

    A behaviour that several tests show is seen if all of them passed. Lines of a run without the
    recorder, in which a test "passes" by failing, say only whether its tests need the recorder.
    """
    fresh: Results = {}
    for line in lines:
        if line.get("without_tap"):
            continue
        behaviours = fresh.setdefault(line["version"], {})
        before = behaviours.get(line["behaviour"])
        if before is None or _weight(line["outcome"]) > _weight(before["outcome"]):
            behaviours[line["behaviour"]] = {
                "outcome": line["outcome"],
                "reason": line["reason"],
            }
    found = {
        version: {
            name: {**results.get(version, {}).get(name, {}), **each}
            for name, each in {**results.get(version, {}), **fresh.get(version, {})}.items()
        }
        for version in sorted({*results, *fresh}, key=_numbers)
    }
    _note_need_of_tap(found, [line for line in lines if line.get("without_tap")])
    return found


def _note_need_of_tap(results: Results, lines: list[dict[str, Any]]) -> None:
    needs: dict[tuple[str, str], bool] = {}
    for line in lines:
        if line["outcome"] != "skipped":
            key = line["version"], line["behaviour"]
            needs[key] = needs.get(key, True) and line["outcome"] == "passed"
    for (version, name), needed in needs.items():
        if name in results.get(version, {}):
            results[version][name]["needs_tap"] = needed


def page() -> str:
    """Return docs/compatibility.md."""
    results = load_results()
    lines = [
        "# Compatibility",
        "",
        "Made from `cli/compatibility.json` and `patches/vllm/surface.json`, which",
        "`./scripts/compatibility` and `python -m routereplay.cli.surface` write; by",
        "`python -m routereplay.cli.reference docs`.",
        "",
        "* **tested**: a real server of this release showed the behaviours below; every recorded",
        "  row of every test equals the experts that transformers' own float32 forward picks. On",
        "  CUDA, in bfloat16, rows equal vLLM's native ones bit for bit, and differ from that",
        "  forward's by near ties only (`tests/gpu/test_recorder_cuda.py`).",
        "* **expected**: nobody ran it here. Every symbol, parameter and name that the recorder",
        "  uses was read in its wheel and fits, and its canary decides at start.",
        "* **refused**: it does not start with the recorder.",
        "",
        "| vLLM | | symbols | wrapped bodies |",
        "|---|---|---|---|",
    ]
    snapshot = load_snapshot()
    tested = {version: snapshot[version] for version in results if version in snapshot}
    for version, surface in snapshot.items():
        fits = "fit" if not misfits_of(surface, version) else "do not fit"
        others = len(unseen_bodies(surface, tested))
        bodies = f"{others} differ from the tested ones" if others else "as in a tested release"
        status = _status(results.get(version))
        if version in _PYTHON_ONLY and version in results:
            status += ", its Python over older kernels"
        lines.append(f"| {version} | {status} | {fits} | {bodies} |")
    first, before = (".".join(map(str, parts)) for parts in (FIRST, BEFORE))
    lines += [
        f"| before {first}, from {before} | refused | not read | `unsupported_library_version` |",
        "",
        "## Behaviours, on real servers",
        "",
        "Builds: " + "; ".join(f"{v}: {_ENVIRONMENTS.get(v, '')}" for v in results) + ".",
        "",
        *_LEGEND.splitlines(),
        "",
        f"| behaviour | {' | '.join(results)} | without the recorder |",
        "|---" * (len(results) + 2) + "|",
    ]
    behaviours = list(dict.fromkeys(name for found in results.values() for name in found))
    for name in behaviours:
        cells = [_cell(name, version, results[version].get(name)) for version in results]
        lines.append(f"| {name} | {' | '.join(cells)} | {_without_tap(name, results)} |")
    lines += ["", "On CPU builds:", ""]
    lines += [f"* {name}: {how}." for name, how in _ON_CPU.items()]
    lines += ["", "On CUDA:", "", *_ON_CUDA.splitlines()]
    lines += ["", "## Engines that are refused at start", "", "| what | why | way out |"]
    lines += ["|---|---|---|"]
    lines += [f"| {each.name} | {each.reason} | {each.way_out} |" for each in REFUSALS]
    lines += [
        "| an `OutputProcessor` of somebody else | rows would go past the recorder | remove what "
        "replaces it |",
        "| routes that are not real | the canary saw it | `--enforce-eager` on a CPU, another "
        "`--moe-backend`, a newer vLLM |",
        "",
    ]
    return "\n".join(lines)


def main(path: str) -> None:
    """Keep the results of a run."""
    lines = [json.loads(line) for line in Path(path).read_text().splitlines()]
    target = Path(str(files("routereplay.cli").joinpath(RESULTS)))
    target.write_text(json.dumps(merged(load_results(), lines), indent=1) + "\n", encoding="utf-8")


def _status(found: dict[str, dict[str, Any]] | None) -> str:
    if found is None:
        return "expected"
    outcomes = [each["outcome"] for each in found.values()]
    passed, failed = outcomes.count("passed"), outcomes.count("failed")
    return f"**tested**: {passed} behaviours" + (f", {failed} FAIL" if failed else "")


def _cell(name: str, version: str, found: dict[str, Any] | None) -> str:
    if found is None:
        return "" if version.endswith(_CUDA) else _NOT_ON_CPU.get(name, "")
    if found["outcome"] == "skipped":
        return str(found["reason"])
    return "**yes**" if found["outcome"] == "passed" else "**no**"


def _without_tap(name: str, results: Results) -> str:
    needs = {
        version: found[name]["needs_tap"]
        for version, found in results.items()
        if "needs_tap" in found.get(name, {})
    }
    passing = [version for version, needed in needs.items() if not needed]
    if passing:
        return f"**passes** on {', '.join(passing)}"
    return f"fails on {', '.join(needs)}" if needs else ""


def _weight(outcome: str) -> int:
    return ("skipped", "passed", "failed").index(outcome)


def _numbers(version: str) -> tuple[int, ...]:
    """`0.26.0 on CUDA` comes after `0.26.0`."""
    return (*(int(part) for part in version.split()[0].split(".")), len(version.split()))


if __name__ == "__main__":
    main(sys.argv[1])
