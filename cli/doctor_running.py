"""The doctor's look at what runs: the store, the clock, the disk, a vLLM server."""

from __future__ import annotations

import email.utils
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx

from routereplay.cli.findings import Finding, failed, ok, warning

_MAX_SKEW_S = 5.0
_SAMPLE = re.compile(r"^routereplay_recorder_(\w+?)(?:_total)?(?:\{(.*?)\})? (\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')


def check_store(url: str) -> Iterator[Finding]:
    """Yield whether the store answers and is ready, and whether its clock is ours."""
    transport = None
    base = url.rstrip("/")
    if base.startswith("unix://"):
        transport = httpx.HTTPTransport(uds=base.removeprefix("unix://"))
        base = "http://store"
    try:
        with httpx.Client(transport=transport, trust_env=False, timeout=5.0) as client:
            answer = client.get(f"{base}/readyz")
    except httpx.HTTPError as error:
        yield failed("store", f"{url} cannot be reached ({error})", "start it: routereplay serve")
        return
    if answer.status_code != httpx.codes.OK:
        yield failed("store", f"{url} says {answer.text.strip()}", "look at the store's log")
        return
    yield ok("store", f"{url} is ready")
    date = email.utils.parsedate_to_datetime(answer.headers["Date"]).timestamp()
    skew = abs(time.time() - date)
    if skew > _MAX_SKEW_S:
        yield warning(
            "clock",
            f"this machine and the store are {skew:.0f} s apart",
            "run a time service on both: turns are ordered and expire by the clock",
        )
    else:
        yield ok("clock", f"within {_MAX_SKEW_S:g} s of the store's")


def check_disk(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Yield whether the recorder's spool has room for what it may hold."""
    from routereplay.patches.vllm.settings import Settings

    folder = environ.get("ROUTEREPLAY_SPOOL_DIR")
    if not folder:
        yield ok("disk", "no spool: rows wait in memory while the store is away")
        return
    place = Path(folder)
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    wanted = int(float(environ.get("ROUTEREPLAY_SPOOL_BYTES") or Settings.spool_bytes))
    text = f"{free / 2**30:.1f} GiB free at {place}, {wanted / 2**30:.1f} GiB for the spool"
    if free < wanted:
        yield warning("disk", text, "make room, or lower ROUTEREPLAY_SPOOL_BYTES")
    else:
        yield ok("disk", text)


def check_server(url: str) -> Iterator[Finding]:
    """Yield what the recorder of a running vLLM server says of itself on `/metrics`."""
    try:
        answer = httpx.get(f"{url.rstrip('/')}/metrics", trust_env=False, timeout=5.0)
        answer.raise_for_status()
    except httpx.HTTPError as error:
        yield failed("server", f"{url} has no metrics ({error})", "is it a vLLM server?")
        return
    found: dict[tuple[str, str], float] = {}
    for name, labels, value in _SAMPLE.findall(answer.text):
        label = next((text for _, text in _LABEL.findall(labels or "")), "")
        found[name, label] = found.get((name, label), 0.0) + float(value)
    if not found:
        yield failed("server", f"{url} is not recorded", "set ROUTEREPLAY_STORE_URL and restart it")
        return
    yield _canary({state: n for (name, state), n in found.items() if name == "canary" and n})
    suspects = {k: n for (name, k), n in found.items() if name == "suspect_records" and n}
    if suspects:
        yield failed("watch", _counts(suspects) + " records cannot be real", "see the server's log")
    else:
        yield ok("watch", "no record was sealed as invalid")
    lost = {
        k.removeprefix("dropped:"): n
        for (name, k), n in found.items()
        if name == "records" and k.startswith("dropped:") and k != "dropped:aborted" and n
    }
    if lost:
        yield warning("records", f"lost: {_counts(lost)}", "docs/operating.md explains each reason")
    else:
        yield ok("records", f"{found.get(('records', 'sealed'), 0):.0f} sealed, none lost")


def _canary(states: Mapping[str, float]) -> Finding:
    if states.get("failed"):
        return failed("canary", "routes are not real: nothing is recorded", "see the server's log")
    if states.get("proven") and len(states) == 1:
        return ok("canary", "routes were proven real at start")
    return warning(
        "canary",
        f"{_counts(states) or 'off'}: nothing proved that routes are real",
        "see the server's log, and ROUTEREPLAY_CANARY",
    )


def _counts(found: Mapping[str, float]) -> str:
    return ", ".join(f"{count:.0f} {name}" for name, count in sorted(found.items()))
