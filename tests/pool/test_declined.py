"""421 and 425: a server that wants the request on another connection, or later, gets it so, once; the ledger tells."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from allswell import ConnectionPool
from tests.support.peer import scripted_peer
from tests.support.peer_connection import PeerConnection

pytestmark = pytest.mark.anyio


def _answer(peer: PeerConnection, status: str, body: bytes = b"") -> None:
    peer.send(b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status.encode(), len(body), body))


class _Picky:
    """Declines as often as it is told to, then answers with the number of requests it has seen."""

    def __init__(self, status: str, times: int) -> None:
        self.status, self.times, self.requests = status, times, 0

    def __call__(self, peer: PeerConnection) -> None:
        while peer.read_request():
            self.requests += 1
            if self.requests <= self.times:
                _answer(peer, self.status)
            else:
                _answer(peer, "200 OK", b"%d" % self.requests)


@pytest.mark.parametrize(("status", "connections"), [("421 Misdirected Request", 2), ("425 Too Early", 1)])
async def test_declined_once_is_sent_again(status: str, connections: int) -> None:
    picky = _Picky(status, 1)
    with scripted_peer(picky) as peer:
        async with ConnectionPool(http2=False) as pool:
            response = await pool.request("POST", peer.url, content=b"body")
            assert response.status == 200
            assert await response.read() == b"2"
            assert [attempt.processed for attempt in response.attempts] == ["declined"]
            assert status[:3] in str(response.attempts[0])
        assert len(peer.connections) == connections


@pytest.mark.parametrize("status", ["421 Misdirected Request", "425 Too Early"])
async def test_declined_twice_is_the_answer(status: str) -> None:
    picky = _Picky(status, 99)
    with scripted_peer(picky) as peer:
        async with ConnectionPool(http2=False) as pool:
            response = await pool.request("GET", peer.url)
            assert response.status == int(status[:3])
    assert picky.requests == 2


async def test_a_body_that_is_spent_is_not_sent_again() -> None:
    async def once() -> AsyncIterator[bytes]:
        yield b"body"

    picky = _Picky("421 Misdirected Request", 1)
    with scripted_peer(picky) as peer:
        async with ConnectionPool(http2=False) as pool:
            response = await pool.request("POST", peer.url, content=once())
            assert response.status == 421
    assert picky.requests == 1
