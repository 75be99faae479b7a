"""Ports to meet at: free ones, of a range of their own."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from actors.ports import MEETING_PORTS, meeting_port


def test_it_is_free_and_no_port_that_the_system_gives_to_connections() -> None:
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for _ in range(20):
        port = meeting_port()
        assert port in MEETING_PORTS
        assert port < lowest
        with socket.socket() as there:
            there.bind(("", port))


def test_one_that_somebody_listens_on_is_left_to_them() -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=rf"no free port from {port} to {port}"):
            meeting_port([port])
