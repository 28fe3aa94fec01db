"""The doctor's look at what runs: the store, the clock, the disk, a vLLM server."""

from __future__ import annotations

import email.utils
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx

from routereplay.cli.findings import Finding, failed, ok, warning
from routereplay.client import RouteStoreClient
from routereplay.client.tls import TlsFiles
from routereplay.wire.errors import Forbidden, RouteReplayError, Unauthenticated

_MAX_SKEW_S = 5.0
_SAMPLE = re.compile(r"^routereplay_recorder_(\w+?)(?:_total)?(?:\{(.*?)\})? (\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')


def check_store(url: str) -> Iterator[Finding]:
    """Yield whether the store answers and is ready, and whether its clock is ours."""
    base = url.rstrip("/")
    path = base.removeprefix("unix://") if base.startswith("unix://") else None
    try:
        tls = TlsFiles.from_env(os.environ).context()
        transport = httpx.HTTPTransport(uds=path, verify=tls)
        with httpx.Client(transport=transport, trust_env=False, timeout=5.0) as client:
            answer = client.get(f"{'http://store' if path else base}/readyz")
    except ValueError as error:
        yield failed("tls", str(error), "mend the file, or the variable that names it")
        return
    except httpx.HTTPError as error:
        yield failed("store", f"{url} cannot be reached ({error})", "start it: routereplay serve")
        return
    if answer.status_code != httpx.codes.OK:
        yield failed("store", f"{url} says {answer.text.strip()}", "look at the store's log")
        return
    yield ok("store", f"{url} is ready")
    yield from _check_key(url)
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


def _check_key(url: str) -> Iterator[Finding]:
    """Yield whether the store knows our key, if it asks for one."""
    given = any(os.environ.get(f"ROUTEREPLAY_API_KEY{tail}") for tail in ("", "_FILE"))
    try:
        with RouteStoreClient(url, attempts=1) as client:
            client.recent_requests(1)
    except Unauthenticated as error:
        text = error.message if given else "it asks for an API key, and none is set here"
        do = "ROUTEREPLAY_API_KEY_FILE names the file of a key; `routereplay keys new` makes one"
        yield failed("key", text, do)
    except Forbidden as error:
        # As a recorder's key is meant to be.
        yield ok("key", f"known to the store; {error.message}")
    except (OSError, ValueError) as error:
        yield failed("key", str(error), "mend the file, or the variable that names it")
    except RouteReplayError as error:
        yield warning("key", f"{error.code}: {error.message}", "look at the store's log")
    else:
        yield ok("key", "the store knows our API key" if given else "none is set, and none needed")


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
        return ok("canary", "routes were proven real")
    return warning(
        "canary",
        f"{_counts(states) or 'off'}: nothing proved that routes are real",
        "see the server's log, and ROUTEREPLAY_CANARY; placeholders (--load-format dummy) are "
        "judged at the first request after a trainer brought weights",
    )


def _counts(found: Mapping[str, float]) -> str:
    return ", ".join(f"{count:.0f} {name}" for name, count in sorted(found.items()))
