"""A client's half for tests: a driven connection over QUIC, made by hand, without the pool."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio

from allswell._backends.http3 import Http3
from allswell._backends.interface import AlternativeOffered, Backend, OriginsNamed
from allswell._config import PoolConfig, Timeouts
from allswell._connection.connection import Connection
from allswell._connection.driver import Driver
from allswell._connection.exchange import Exchange, FallenSilent
from allswell._deadline import Deadline
from allswell._filters.quic import QuicFilter
from allswell._filters.stack import Stack
from allswell._filters.udp import UdpFilter
from allswell._messages import Headers, RequestHead, ResponseHead
from allswell._quic.connection import ClientConnection
from allswell._quic.interface import QuicEvent
from allswell._quic.settings import QuicSettings
from allswell._report import ConnectionEnd
from allswell._tasks import current_host
from tests.support.certificates import certificates
from tests.support.lag import PATIENCE

PATIENT = Timeouts(PATIENCE, PATIENCE, PATIENCE, PATIENCE)


def quic_settings(**changes: Any) -> QuicSettings:
    """Settings that trust the tests' CA."""
    options: dict[str, Any] = {"server_name": "localhost", "server": "localhost"}
    options["trust"] = certificates().client_context()
    return QuicSettings(**(options | changes))


class QuicClient:
    """One connection, and what became of it.

    :ivar end: its end, once it is over.
    :ivar available: how often it told its owner of room.
    """

    def __init__(self, port: int, settings: QuicSettings | None = None, *, host: str = "127.0.0.1") -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.udp = UdpFilter(family, (host, port))
        self.quic = QuicFilter(self.udp, settings or quic_settings())
        self.stack = Stack(self.quic, self.udp)
        self.end: ConnectionEnd | None = None
        self.left = False
        self.announced: list[OriginsNamed | AlternativeOffered] = []
        self._ended = anyio.Event()
        self.connection: Connection

    def connection_available(self, connection: Connection) -> None:
        """Part of what an owner of connections is."""

    def connection_wanted(self, connection: Connection) -> bool:
        """Part of what an owner of connections is."""
        return False

    def connection_leaving(self, connection: Connection) -> None:
        """Part of what an owner of connections is."""
        self.left = True

    def connection_announced(self, connection: Connection, news: OriginsNamed | AlternativeOffered) -> None:
        """Part of what an owner of connections is."""
        self.announced.append(news)

    def connection_ended(self, connection: Connection, end: ConnectionEnd) -> None:
        """Part of what an owner of connections is."""
        self.end = end
        self._ended.set()

    async def start(self, backend: Callable[[ClientConnection], Backend[list[QuicEvent]]] = Http3) -> None:
        """Connect, and drive the connection."""
        with anyio.fail_after(PATIENCE):
            await self.stack.connect()
        host = current_host()
        self.connection = Driver(
            host,
            self.stack,
            backend(self.quic.connection),
            label="https://localhost",
            owner=self,
            config=PoolConfig(keepalive_expiry=None),
        ).connection
        self.connection.start()

    def open(
        self,
        path: str = "/",
        method: str = "GET",
        headers: Headers | None = None,
        body: bytes | None = None,
        **more: Any,
    ) -> Exchange[Connection]:
        """Send a request."""
        head = RequestHead(
            method.encode(), b"https", b"localhost", path.encode(), headers or [], more.pop("protocol", None)
        )
        return self.connection.open(head, body, timeouts=PATIENT, **more)

    async def get(self, path: str = "/", **request: Any) -> tuple[ResponseHead, bytes]:
        """A whole exchange."""
        exchange = self.open(path, **request)
        while True:
            try:
                return await exchange.response(), await read(exchange)
            except FallenSilent:  # a network that loses much: the pool would wait on, too
                await exchange.settled()

    async def aclose(self, grace: float = PATIENCE) -> ConnectionEnd:
        """Close politely; how it ended."""
        if hasattr(self, "connection"):
            self.connection.close("the test is over", Deadline.after(grace))
            return await self.ended()
        self.stack.abort()
        raise AssertionError("never connected")

    async def ended(self, patience: float = PATIENCE) -> ConnectionEnd:
        """Wait until the connection is over."""
        with anyio.fail_after(patience):
            await self._ended.wait()
        assert self.end is not None
        return self.end


async def read(exchange: Exchange[Connection]) -> bytes:
    """The rest of a response's body."""
    pieces = []
    while piece := await exchange.receive():
        pieces.append(piece)
    return b"".join(pieces)


@asynccontextmanager
async def bare_quic(port: int, settings: QuicSettings | None = None) -> AsyncIterator[QuicClient]:
    """A client that is connected, but that nobody drives: for the filter's own methods."""
    client = QuicClient(port, settings)
    with anyio.fail_after(PATIENCE):
        await client.stack.connect()
    try:
        yield client
    finally:
        client.stack.abort()


@asynccontextmanager
async def quic_client(port: int, settings: QuicSettings | None = None, **options: Any) -> AsyncIterator[QuicClient]:
    """A connected client; aborted at the end if it is still open."""
    client = QuicClient(port, settings, host=options.pop("host", "127.0.0.1"))
    await client.start(**options)
    try:
        yield client
    finally:
        if client.end is None:
            client.connection.abort("the test is over")
            await client.ended()
