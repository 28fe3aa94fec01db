"""Under which names a store without keys answers.

A page in a browser may send requests to its own site only, and can make its name lead to
127.0.0.1 (DNS rebinding). Keys stop it; without any, the name that it asks for gives it away.
"""

from __future__ import annotations

import ipaddress
import re

_NAME = re.compile(r"(\[[0-9a-f:.]+\]|[^:]*)(?::[0-9]{1,5})?", re.IGNORECASE)
_LOCAL = (".local", ".internal", ".localhost")
"""Ends of names that nobody can register; `.local` is that of Kubernetes' services too."""


def is_local_name(host: str, allowed: frozenset[str]) -> bool:
    """Tell whether the `Host` of a request is one that no stranger can have.

    Args:
        host: the header: an address or a name, perhaps with a port.
        allowed: other names that are right; `*` is any.
    """
    match = _NAME.fullmatch(host)
    name = match[1].lower().removesuffix(".") if match else ""
    if "*" in allowed or name in allowed:
        return True
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return bool(name) and ("." not in name or name.endswith(_LOCAL))
    return True
