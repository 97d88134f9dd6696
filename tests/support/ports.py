"""Ports of the loopback: one that is free, and when a server that was just started listens on its own."""

from __future__ import annotations

import random
import socket
import subprocess
import time


def free_port() -> int:
    """A port that is free for TCP and UDP, outside the range that outgoing connections get theirs from."""
    for _ in range(100):
        port = random.randrange(18_000, 32_000)
        with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
            try:
                tcp.bind(("127.0.0.1", port))
                udp.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError("no free port")


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
