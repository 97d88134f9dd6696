"""Nothing may be left behind: open sockets of this process, and connections that the kernel still holds for us.

A test module, or a folder by its conftest.py, has the check on every test once it imports it::

    from tests.support.leaks import no_leaked_sockets  # noqa: F401  a fixture

(A socket that was dropped unclosed is the interpreter's to find: ResourceWarning is an error here.)
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

# The kernel's numbers (include/net/tcp_states.h), as they stand in /proc/net/tcp.
_STATES = {
    1: "ESTABLISHED",
    2: "SYN_SENT",
    3: "SYN_RECV",
    4: "FIN_WAIT1",
    5: "FIN_WAIT2",
    6: "TIME_WAIT",
    7: "CLOSE",
    8: "CLOSE_WAIT",
    9: "LAST_ACK",
    10: "LISTEN",
    11: "CLOSING",
}


def open_sockets() -> dict[int, str]:
    """This process's sockets: file descriptor -> ``"socket:[INODE]"``."""
    sockets = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            what = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # the descriptor of this very listing
            continue
        if what.startswith("socket:"):
            sockets[int(name)] = what
    return sockets


def socket_states(port: int) -> list[tuple[int, int, str]]:
    """TCP's sockets at that port, on either side: (local port, remote port, state such as ``"CLOSE_WAIT"``)."""
    found = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        if not Path(table).exists():
            continue  # a kernel without IPv6
        for line in Path(table).read_text().splitlines()[1:]:
            _, local, remote, state, *_ = line.split()
            ports = int(local.rpartition(":")[2], 16), int(remote.rpartition(":")[2], 16)
            if port in ports:
                found.append((*ports, _STATES.get(int(state, 16), state)))
    return found


def client_states(port: int) -> list[str]:
    """The states of the sockets that are connected *to* that port: the client's side, sorted."""
    return sorted(state for _, remote, state in socket_states(port) if remote == port)


def await_client_states(port: int, wanted: set[str], timeout: float = 30.0) -> None:
    """Block until each client's socket to that port is in one of these states; ``set()`` waits until there is none.

    :raises AssertionError: they are not, in time; with what they are.
    """
    deadline = time.monotonic() + timeout
    while not set(states := client_states(port)) <= wanted:
        assert time.monotonic() < deadline, f"sockets to port {port} after {timeout} s: {states}, wanted {wanted}"
        time.sleep(0.005)  # the kernel tells nobody when a state changes: look again, bounded


@contextmanager
def sockets_closed() -> Iterator[None]:
    """Every socket of this process that is opened in the block is closed in it.

    :raises AssertionError: with the descriptors left open.
    """
    gc.collect()  # what was dropped before is not this block's
    before = set(open_sockets().values())
    yield
    deadline = time.monotonic() + 10
    while left := {number: what for number, what in open_sockets().items() if what not in before}:
        if time.monotonic() > deadline:
            break
        time.sleep(0.005)  # a resolver's thread has one for a moment; what leaked stays
    assert not left, f"sockets left open: {left}"


@pytest.fixture(autouse=True)
def no_leaked_sockets() -> Iterator[None]:
    """Fails a test that leaves open a socket. The event loop's own come and go inside, with anyio's runner."""
    with sockets_closed():
        yield
