"""Entry point of `vllm.general_plugins`: vLLM calls `register` in each of its processes.

vLLM logs and swallows an error of *importing* this module and lets an error of *calling*
`register` end the start-up, so this module imports the standard library only and every
check happens in the call. It opens no port and starts no thread: vLLM may fork after it.
"""

from __future__ import annotations

import os
import sys

_OFF = frozenset({"0", "false", "no", "off"})


def register() -> None:
    """Switch the recorder on where it has work, if `ROUTEREPLAY_STORE_URL` is set.

    Raises:
        PatchError: this vLLM is not one that the recorder knows.
        ValueError: a `ROUTEREPLAY_` variable means nothing.
    """
    if os.environ.get("ROUTEREPLAY_CONFIG"):
        from routereplay.patches.vllm.config_file import fill

        fill(os.environ)
    if not os.environ.get("ROUTEREPLAY_STORE_URL"):
        return
    if os.environ.get("ROUTEREPLAY_ENABLED", "1").strip().lower() in _OFF:
        return
    # Requests enter and leave where the engine's arguments are parsed, and a worker imports
    # neither that module nor the engine core's.
    is_front_end = "vllm.engine.arg_utils" in sys.modules
    if not (is_front_end or "vllm.v1.engine.core" in sys.modules):
        return
    from routereplay.patches.vllm.install import install

    install(engine_only=not is_front_end)
