"""Event loops that call us: of all that a socket has to tell, errors included, for as long as we listen."""

from __future__ import annotations

import asyncio
import contextvars
import socket
import struct
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, TypeVarTuple, Unpack

import anyio
import anyio.lowlevel
import pytest

from allswell._tasks import current_host

pytestmark = pytest.mark.anyio

_Ts = TypeVarTuple("_Ts")


class _WithoutContexts(asyncio.SelectorEventLoop):
    """It calls readers in another context than that in which they were added, as qasync does."""

    def add_reader(self, fd: Any, callback: Callable[[Unpack[_Ts]], Any], *args: *_Ts) -> None:
        add = super().add_reader
        contextvars.Context().run(lambda: add(fd, callback, *args))


@pytest.fixture(params=["asyncio", "uvloop", "without contexts"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Those that call; uvloop forgets a socket after an error."""
    if request.param == "without contexts":
        return ("asyncio", {"loop_factory": _WithoutContexts})
    return ("asyncio", {"use_uvloop": request.param == "uvloop"})


class Watched:
    """What is heard on a socket: data, or the name of an error."""

    def __init__(self, sock: socket.socket, last: object) -> None:
        self.heard: list[object] = []
        self._sock = sock
        self._last = last
        self._host = current_host()
        self._over = self._host.signal()
        assert self._host.watch_readable(sock, self._look)

    def _look(self) -> None:
        try:
            self.heard.append(self._sock.recv(100))
        except OSError as error:
            self.heard.append(type(error).__name__)
        if self.heard[-1] == self._last:
            assert self._host.watch_readable(self._sock, None)
            self._over.set()

    async def over(self) -> None:
        with anyio.fail_after(30):
            await self._over.wait()


async def test_a_reset_right_behind_data() -> None:
    with ExitStack() as sockets:
        listener = sockets.enter_context(socket.create_server(("127.0.0.1", 0)))
        ours = sockets.enter_context(socket.create_connection(listener.getsockname()))
        theirs, _ = listener.accept()
        ours.setblocking(False)
        watched = Watched(ours, "ConnectionResetError")
        await anyio.lowlevel.checkpoint()
        theirs.send(b"the last words")
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        theirs.close()
        await watched.over()
        assert watched.heard == [b"the last words", "ConnectionResetError"]


async def test_the_context_of_calls() -> None:
    """anyio knows in a call which event loop runs, and the call has none of the variables of those who listen."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="none")
    variable.set("of those who listen")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        host = current_host()
        over, seen = host.signal(), list[object]()

        def look() -> None:
            host.watch_readable(ours, None)
            try:
                seen.extend((variable.get(), anyio.get_cancelled_exc_class()))
            finally:
                over.set()

        assert host.watch_readable(ours, look)
        theirs.send(b"anything")
        with anyio.fail_after(30):
            await over.wait()
    assert seen == ["none", asyncio.CancelledError]


async def test_datagrams_behind_an_error() -> None:
    """Nobody was there (ICMP), and then somebody is."""
    with ExitStack() as sockets:
        theirs = sockets.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        theirs.bind(("127.0.0.1", 0))
        address = theirs.getsockname()
        ours = sockets.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        ours.setblocking(False)
        ours.connect(address)
        theirs.close()
        watched = Watched(ours, "ConnectionRefusedError")
        ours.send(b"anybody?")
        await watched.over()

        watched = Watched(ours, b"the second")
        ours.send(b"anybody now?")
        with anyio.fail_after(30):
            while not watched.heard:
                await anyio.lowlevel.checkpoint()
        later = sockets.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        later.bind(address)
        later.sendto(b"the first", ours.getsockname())
        later.sendto(b"the second", ours.getsockname())
        await watched.over()
        assert watched.heard == ["ConnectionRefusedError", b"the first", b"the second"]
