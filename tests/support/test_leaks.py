"""A socket left open is found, and so is a connection left in CLOSE_WAIT."""

from __future__ import annotations

import socket

import anyio
import pytest

from tests.support.leaks import (
    await_client_states,
    client_states,
    no_leaked_sockets,  # noqa: F401  a fixture: every test here is checked too
    socket_states,
    sockets_closed,
)
from tests.support.peer import scripted_peer
from tests.support.plain_client import plain
from tests.support.scripts import Ending, answers


def test_an_open_socket_is_found() -> None:
    with pytest.raises(AssertionError, match=r"left open: \{\d+: 'socket"), sockets_closed():
        left = socket.socket()
    left.close()


def test_sockets_from_before_and_closed_ones_are_fine() -> None:
    with socket.socket(), sockets_closed(), socket.socket():
        pass


@pytest.mark.anyio
async def test_an_event_loop_is_no_leak() -> None:
    async with await anyio.create_udp_socket(local_host="127.0.0.1") as udp:
        assert udp.extra_attributes
    await anyio.to_thread.run_sync(lambda: None)


def test_close_wait_is_seen() -> None:
    with scripted_peer(answers(0, ending=Ending.FIN)) as peer:
        with plain(peer) as client:
            assert client.recv(1) == b""
            assert "CLOSE_WAIT" in client_states(peer.port)
            own = client.getsockname()[1]
            assert (own, peer.port, "CLOSE_WAIT") in socket_states(peer.port)
            with pytest.raises(AssertionError, match="CLOSE_WAIT"):
                await_client_states(peer.port, set(), timeout=0.05)
        await_client_states(peer.port, {"TIME_WAIT"})


def test_established_and_listening_are_seen() -> None:
    with scripted_peer(answers(), host="::1") as peer, plain(peer):
        peer.wait_accepted()
        states = [state for *_, state in socket_states(peer.port) if state != "TIME_WAIT"]  # an earlier test's
        assert sorted(states) == ["ESTABLISHED", "ESTABLISHED", "LISTEN"]
