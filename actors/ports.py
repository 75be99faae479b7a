"""Ports that processes meet at: from a range that nothing else is given by itself."""

from __future__ import annotations

import random
import socket
from collections.abc import Sequence

MEETING_PORTS = range(20_000, 32_000)
"""Above Ray's workers (10002 to 19999), below what Linux gives to outgoing connections (32768 and up): one that is free
now is not taken by the next connection of anybody, before who asked for it listens there."""
ATTEMPTS = 200


def meeting_port(ports: Sequence[int] = MEETING_PORTS) -> int:
    """A port of this machine on which nobody listens. Raises OSError where none is found."""
    for port in random.SystemRandom().choices(ports, k=ATTEMPTS):
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise OSError(f"no free port from {ports[0]} to {ports[-1]} in {ATTEMPTS} attempts: who listens there?")
