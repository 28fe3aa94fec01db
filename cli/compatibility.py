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
"""Version, then behaviour, then `outcome` (`passed`, `failed`, `skipped`) and `reason`."""

RESULTS = "compatibility.json"

_ENVIRONMENTS = {
    "0.26.0": "`scripts/vllm-cpu-capture` gives its CPU kernel the capture hook that it lacks",
    "0.30.0": "as released, with Triton's interpreter for speculation and adapters",
    "0.32.0": "Triton's interpreter runs its kernels (`scripts/vllm-cpu-triton`)",
}
"""What had to be added to a CPU build, by version."""

_NOT_SEEN = (
    ("async scheduling", "the CPU platform switches it off; everything above ran without it"),
    ("data parallel", "a CPU build has no all-to-all for experts: its first request ends it"),
    ("LoRA", "a CPU build lacks the kernel (`moe_align_block_size`) for adapters of experts"),
    (
        "new weights in mid-request",
        "spans are tested on the states that vLLM keeps (`weight_version_starts`), not on a server",
    ),
)
"""What no CPU build can show."""


def load_results() -> Results:
    """Return what the last runs have shown."""
    text = files("routereplay.cli").joinpath(RESULTS).read_text(encoding="utf-8")
    results: Results = json.loads(text)
    return results


def merged(results: Results, lines: list[dict[str, Any]]) -> Results:
    """Return results with those of a run in place of the older ones of its behaviours.

    A behaviour that several tests show is seen if all of them passed.
    """
    fresh: Results = {}
    for line in lines:
        behaviours = fresh.setdefault(line["version"], {})
        before = behaviours.get(line["behaviour"])
        if before is None or _weight(line["outcome"]) > _weight(before["outcome"]):
            behaviours[line["behaviour"]] = {
                "outcome": line["outcome"],
                "reason": line["reason"],
            }
    return {
        version: {**results.get(version, {}), **fresh.get(version, {})}
        for version in sorted({*results, *fresh}, key=_numbers)
    }


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
        "  row of every test equals the experts that transformers' own float32 forward picks.",
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
        lines.append(f"| {version} | {_status(results.get(version))} | {fits} | {bodies} |")
    first, before = (".".join(map(str, parts)) for parts in (FIRST, BEFORE))
    lines += [
        f"| before {first}, from {before} | refused | not read | `unsupported_library_version` |",
        "",
        "## Behaviours, on real servers",
        "",
        "CPU builds: " + "; ".join(f"{v}: {_ENVIRONMENTS.get(v, '')}" for v in results) + ".",
        "",
        f"| behaviour | {' | '.join(results)} |",
        "|---" * (len(results) + 1) + "|",
    ]
    behaviours = list(dict.fromkeys(name for found in results.values() for name in found))
    lines += [
        f"| {name} | {' | '.join(_cell(results[v].get(name)) for v in results)} |"
        for name in behaviours
    ]
    lines += ["", "No CPU build can show:", "", "| behaviour | why not |", "|---|---|"]
    lines += [f"| {name} | {why} |" for name, why in _NOT_SEEN]
    lines += ["", "## Engines that are refused at start", "", "| what | why | way out |"]
    lines += ["|---|---|---|"]
    lines += [f"| {each.name} | {each.reason} | {each.way_out} |" for each in REFUSALS]
    lines += [
        "| vLLM's Rust front end | requests pass by the Python one | unset "
        "`VLLM_USE_RUST_FRONTEND` |",
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


def _cell(found: dict[str, Any] | None) -> str:
    if found is None:
        return "not run"
    if found["outcome"] == "skipped":
        return str(found["reason"])
    return "yes" if found["outcome"] == "passed" else "**no**"


def _weight(outcome: str) -> int:
    return ("skipped", "passed", "failed").index(outcome)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


if __name__ == "__main__":
    main(sys.argv[1])
