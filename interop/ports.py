"""Ports of this machine for servers: each process takes them from a place of its own, so two never take the same."""

from __future__ import annotations

import itertools
import os
import socket

_FIRST, _COUNT = 18_000, 14_000  #: below the range from which outgoing connections get theirs
_APART = 218  #: 64 processes that start one after the other begin so far apart, each at a place of its own
_turns = itertools.count(os.getpid() * _APART)


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP and UDP port that nobody has. It stays free until the server binds it, as nobody else comes by soon.

    :raises RuntimeError: none of a hundred is free.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for turn in itertools.islice(_turns, 100):
        port = _FIRST + turn % _COUNT
        with socket.socket(family) as tcp, socket.socket(family, socket.SOCK_DGRAM) as udp:
            try:
                tcp.bind((host, port))
                udp.bind((host, port))
            except OSError:
                continue
            return port
    raise RuntimeError(f"no free port on {host}")
