"""Reading in turns: what a filter holds already must be taken though the socket has no more to tell of."""

from __future__ import annotations

import math
import ssl
from typing import Any, cast

import anyio
import anyio.lowlevel
import pytest

import allswell
from allswell._backends.http1 import Http1
from allswell._connection import reader
from allswell._dial import kit
from allswell._filters.interface import ReceiveBuffer
from allswell._tasks import current_host
from allswell.testing import Origin
from tests.support.certificates import certificates
from tests.support.peer import scripted_peer
from tests.support.scripts import huge

pytestmark = pytest.mark.anyio


@pytest.fixture
def trusting() -> ssl.SSLContext:
    """Trusts our throw-away CA."""
    return certificates().client_context()


class _Narrow(ReceiveBuffer):
    """Holds much less plaintext than one read of ciphertext can give."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = self.plain[: 32 * 1024]


@pytest.mark.parametrize("turn", [0, reader.TURN, math.inf])
async def test_nothing_is_left_in_tls_when_the_socket_is_empty(
    turn: float, trusting: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A turn may end with whole records left in TLS's buffer, and the server has nothing more to send."""
    monkeypatch.setattr(kit, "ReceiveBuffer", _Narrow)
    monkeypatch.setattr(reader, "TURN", turn)
    size = 1_500_000
    with scripted_peer(huge(size), tls=True) as peer:
        for _ in range(3):
            with anyio.fail_after(30):
                async with allswell.ConnectionPool(ssl_context=trusting, grace=0.5) as pool:
                    response = await pool.request("GET", peer.url)
                    assert len(await response.read()) == size
        await peer.ended()


async def test_a_bug_of_ours_ends_the_connection(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where the event loop calls us, and would only log it: nobody waits for what will never come."""

    def receive(backend: Http1, data: Any) -> Any:
        raise RuntimeError("of ours")

    monkeypatch.setattr(Http1, "receive", receive)
    async with Origin(tls=False) as origin:
        async with allswell.ConnectionPool() as pool:
            with anyio.fail_after(30), pytest.raises(allswell.TransportError, match="a bug: RuntimeError"):
                await pool.request("GET", origin.url)
            assert pool.snapshot().connections == 0
        await origin.ended(timeout=30)
    assert "of ours" in caplog.text


async def test_without_room_nothing_is_read_though_what_was_written_has_gone() -> None:
    """Reading goes on when there is room again, and not whenever somebody says that there may be."""

    class Both:
        """What is read, and what it is read for."""

        is_full = True

        def listen(self, function: object) -> bool:
            return True

        def take(self) -> bool:
            taken.append(None)
            return True

        def full(self) -> bool:
            return self.is_full

        def done(self) -> None:
            """Nothing follows from it."""

    taken: list[None] = []
    both = Both()
    made = reader.Reader(current_host(), cast(Any, both), cast(Any, both))
    made.look()  # and there is no more room
    for _ in range(3):
        made.resume()
        await anyio.lowlevel.checkpoint()
        await anyio.lowlevel.checkpoint()
    assert len(taken) == 1
    both.is_full = False
    made.resume()
    with anyio.fail_after(30):
        while len(taken) < 2:
            await anyio.lowlevel.checkpoint()
    made.stop()
