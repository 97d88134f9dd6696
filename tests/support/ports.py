"""Ports of the loopback: one on which nobody listens, and when a new server does."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def closed_port() -> Iterator[int]:
    """A port that refuses TCP, on each address. Nobody can listen on it: it is bound, and does not listen."""
    dual = socket.has_dualstack_ipv6()
    with socket.socket(socket.AF_INET6 if dual else socket.AF_INET) as held:
        if dual:
            held.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        held.bind(("", 0))
        port: int = held.getsockname()[1]
        yield port


@pytest.fixture(scope="session")
def closed_udp_port() -> Iterator[int]:
    """A port of 127.0.0.1 that refuses UDP. Nobody can have it: its socket hears nobody but the port "discard"."""
    with socket.socket(type=socket.SOCK_DGRAM) as held:
        held.bind(("127.0.0.1", 0))
        held.connect(("127.0.0.1", 9))
        port: int = held.getsockname()[1]
        yield port


def await_listening(process: subprocess.Popen[bytes], port: int, seconds: float) -> bool:
    """Wait until something listens on this port. Return whether it does: the process may have ended.

    :param seconds: how long to wait at most.
    """
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.02)  # between two tries, bounded: nothing tells us when a stranger starts to listen
        else:
            return True
    return False
