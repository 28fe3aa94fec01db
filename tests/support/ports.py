"""Ports that nothing else takes between the choice and the bind."""

import random
import socket

BELOW_EPHEMERAL = (10_000, 32_768)
"""Linux gives outgoing connections, and those who bind port 0, what lies above."""
_chance = random.SystemRandom()  # Hypothesis seeds the other, in every worker alike.
_given = set()


def free_port():
    """Return a TCP port of 127.0.0.1 that is free and was not returned before."""
    while True:
        port = _chance.randrange(*BELOW_EPHEMERAL)
        if port in _given:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        _given.add(port)
        return port
