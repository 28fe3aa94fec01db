"""Whether a store may listen where it is told to."""

from __future__ import annotations

import ipaddress

from routereplay.sidecar.errors import ExposedWithoutKeys
from routereplay.sidecar.settings import Settings


def check_exposure(settings: Settings) -> None:
    """Raise `ExposedWithoutKeys` if strangers could read and write every route."""
    asks_for_certificate = settings.ssl_cert_reqs == 2
    if settings.keys_file or settings.insecure_no_auth or asks_for_certificate:
        return
    if is_loopback(settings.host):
        return
    msg = (
        f"{settings.host} can be reached from other machines, and without API keys anyone "
        "there could read and change every route. Make keys with `routereplay keys new` and "
        "set ROUTEREPLAY_KEYS_FILE, or ask for client certificates (--ssl-cert-reqs 2), or "
        "say --insecure-no-auth if the network keeps strangers out."
    )
    raise ExposedWithoutKeys(msg)


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can reach `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
