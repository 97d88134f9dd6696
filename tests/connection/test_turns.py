"""Turns: however much a peer sends, others have theirs after a few milliseconds; by a clock of the test's."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import count
from typing import Any, cast

import anyio
import pytest

from allswell import Timeout
from allswell._config import Timeouts
from allswell._connection import goodbye, reader
from allswell._connection.reader import Reader, Takes
from allswell._filters.interface import LAST_READS, Carrier
from allswell._filters.tls import TlsFilter
from allswell._tasks import TaskHost
from tests.support.h2_script import Http2Server, Request, Talk, h2_tls
from tests.support.peer import PeerConnection, scripted_peer
from tests.support.quic_server import QuicServer, ServedConnection
from tests.support.told import VERSIONS, Told, Version

TURN, TAKE = 5, 1


class Loop:
    """An event loop that calls when it is told to, and a stack of which one can read for ever.

    :ivar taken: how many batches were taken.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, batches: float = math.inf) -> None:
        self.now = 0
        self.taken = 0
        self.soon: list[Callable[[], None]] = []
        self.listener: Callable[[], None] | None = None
        self.is_full = False
        self._batches = batches
        monkeypatch.setattr(reader, "monotonic", lambda: self.now)
        monkeypatch.setattr(reader, "TURN", TURN)
        self.reader = Reader(
            cast(TaskHost, self),
            cast("Carrier[object]", self),
            cast(Takes, self),
        )
        assert self.reader.start()
        self.run_once()

    def signal(self) -> Any:
        class Signal:
            def set(self) -> None:
                """Nobody waits."""

        return Signal()

    def call_soon(self, function: Callable[[], None]) -> None:
        self.soon.append(function)

    def listen(self, function: Callable[[], None] | None) -> bool:
        self.listener = function
        return function is not None

    def full(self) -> bool:
        return self.is_full

    def done(self) -> None:
        """Nothing follows from it."""

    def take(self) -> bool:
        if self.taken >= self._batches:
            return False
        self.taken += 1
        self.now += TAKE
        return True

    def run_once(self) -> None:
        """One pass: what was asked for, and the socket, which is readable."""
        soon, self.soon = self.soon, []
        for function in soon:
            function()
        if self.listener is not None:
            self.listener()


def test_a_turn_is_over_after_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loop(monkeypatch)
    assert loop.taken == TURN
    for number in range(2, 5):
        assert len(loop.soon) == 1  # it goes on by itself, once in each pass
        loop.run_once()
        assert loop.taken == number * TURN


def test_what_is_left_is_taken_though_the_socket_tells_of_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loop(monkeypatch, batches=12)
    loop.listener = None  # the rest is in a filter
    for _ in range(5):
        loop.run_once()
    assert loop.taken == 12
    assert not loop.soon


def test_a_look_from_outside_is_a_turn_too(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loop(monkeypatch, batches=13)
    assert not loop.reader.catch_up()
    assert loop.taken == 10
    assert loop.reader.catch_up()
    assert loop.taken == 13


def test_no_turn_without_room(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loop(monkeypatch)
    loop.is_full = True
    loop.run_once()
    before = loop.taken
    assert loop.listener is None
    for _ in range(3):
        loop.run_once()
    assert loop.taken == before
    loop.is_full = False
    loop.reader.resume()
    loop.run_once()
    assert loop.taken == before + TURN
    assert loop.soon


def test_none_after_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loop(monkeypatch)
    before = loop.taken
    loop.reader.stop()
    loop.run_once()
    loop.reader.look()
    assert loop.taken == before
    assert loop.listener is None


# With peers that never stop


@pytest.mark.anyio
async def test_a_last_look_at_what_has_come_is_no_longer_than_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a connection leaves behind, it reads and drops; a peer that goes on sending does not hold it up."""
    origin = Told("h1", stalls=False)
    now = taken = 0

    def receive(self: TlsFilter) -> memoryview:
        nonlocal now, taken
        now += TAKE
        taken += 1
        return memoryview(b"HTTP/1.1 200 OK")

    def answer(connection: PeerConnection) -> None:
        while connection.read_head():
            connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    with scripted_peer(answer, tls=True) as peer:
        async with origin.pool() as pool:
            assert (await pool.request("GET", peer.url)).status == 200
            with monkeypatch.context() as patch:
                patch.setattr(goodbye, "monotonic", lambda: now)
                patch.setattr(goodbye, "TURN", TURN)
                patch.setattr(TlsFilter, "receive_nowait", receive)
                await pool.aclose(timeout=0)
    assert TURN <= taken <= TURN + 1 < LAST_READS  # (one by the goodbye, which has begun)


def _h1(connection: PeerConnection) -> None:
    if connection.read_head():
        connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in count():
            connection.send(b"1\r\na\r\n" * 10_000)


def _h2(talk: Talk, request: Request) -> None:
    talk.send(talk.headers(request.stream, [(":status", "200")]))
    one = b"\0\0\1\0\0" + request.stream.to_bytes(4, "big") + b"a" + b"\0\0\x08\6\0\0\0\0\0" + b"12345678"
    for _ in count():
        talk.connection.send(one * 5_000)


def _h3(connection: ServedConnection, stream: int, fields: dict[bytes, bytes]) -> None:
    connection.head(stream, 200)
    connection.raw(stream, b"\0\1a" * 3_000_000)


@pytest.mark.anyio
@pytest.mark.parametrize("version", VERSIONS)
async def test_the_total_timeout_ends_what_would_never_end(version: Version) -> None:
    async def get(origin: Told) -> None:
        async with origin.pool() as pool:
            timeouts = Timeouts(read=None, total=3)
            with anyio.fail_after(60), pytest.raises(Timeout, match=r"did not finish within 3 s"):
                async with pool.stream("GET", origin.url, timeouts=timeouts) as response:
                    await response.read()

    origin = Told(version, stalls=False)
    if version == "h3":
        with QuicServer({b"/": _h3}) as server:
            origin.url = f"https://127.0.0.1:{server.port}/"
            await get(origin)
    else:
        script, tls = (Http2Server(_h2), h2_tls()) if version == "h2" else (_h1, True)
        with scripted_peer(script, tls=tls) as peer:
            origin.url = peer.url
            await get(origin)
