"""The scripted origin: its sockets, its event loop in a thread of its own, and the methods that tests call.

It never runs in the event loop of the code under test. Otherwise a client that blocks its loop, or a test that is
cancelled, would stop the origin too. So it can also serve synchronous clients, and programs in other processes.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Collection
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TypeAlias

import anyio
from anyio.abc import TaskGroup, TaskStatus
from anyio.from_thread import BlockingPortal, start_blocking_portal

from allswell._report import counted
from allswell.testing._certificates import Certificates, certificates
from allswell.testing._connection import Connection, Script
from allswell.testing._events import Event
from allswell.testing._judge import not_graceful, resets
from allswell.testing._script import Routes, require
from allswell.testing._tcp import TcpConnection
from allswell.testing._udp import QuicEndpoint

Version: TypeAlias = Literal["h1", "h2", "h3"]
_ALPN = {"h2": "h2", "h1": "http/1.1"}
_HOST = "127.0.0.1"


class Origin(Script):
    """A scripted HTTP origin on the loopback that records what its clients do on the wire. It runs inside ``with``.

    :param routes: for each path, its :class:`Response`, or a handler that makes it from the :class:`Request`. Without
        routes, every path gets 200 and ``b"ok"``. Handlers run in the origin's thread; coroutine functions run on
        asyncio.
    :param versions: the versions that it speaks, on one port: ``"h1"`` and ``"h2"`` over TCP, ``"h3"`` over UDP. All by
        default; without TLS, all but ``"h3"``.
    :param tls: ``False`` for plain TCP, with HTTP/2 by prior knowledge.
    :ivar versions: the versions that it speaks.
    :ivar port: its port on 127.0.0.1.
    :raises ValueError: if there is no version or an unknown one, or HTTP/3 without TLS.
    """

    def __init__(
        self, routes: Routes | None = None, *, versions: Collection[Version] | None = None, tls: bool = True
    ) -> None:
        super().__init__(routes)
        by_default: Collection[Version] = ("h1", "h2", "h3") if tls else ("h1", "h2")
        self.versions = frozenset(by_default if versions is None else versions)
        if not self.versions or not self.versions <= {"h1", "h2", "h3"}:
            raise ValueError(f'versions must be at least one of "h1", "h2" and "h3", not {sorted(self.versions)}')
        if not tls and "h3" in self.versions:
            raise ValueError("HTTP/3 needs TLS")
        self._tls = tls
        self.port = 0
        self._connections: list[Connection] = []
        self._portal: BlockingPortal | None = None
        self._stack = ExitStack()
        self._stop: Callable[[], None] = lambda: None
        self._sockets: list[socket.socket] = []
        self._tasks: TaskGroup
        self._files: Certificates | None = None

    @property
    def url(self) -> str:
        """``https://localhost:PORT``, or ``http://127.0.0.1:PORT`` without TLS. It does not end with a slash."""
        return f"https://localhost:{self.port}" if self._tls else f"http://{_HOST}:{self.port}"

    @property
    def ca_file(self) -> Path:
        """The PEM file of the temporary CA's certificate, which a client must trust (``curl --cacert``)."""
        return certificates().ca

    def client_context(self) -> ssl.SSLContext:
        """TLS settings for a client that trust this CA and no other. Each call returns a new object."""
        return ssl.create_default_context(cafile=str(self.ca_file))

    # Its life

    def __enter__(self) -> Self:
        if self._portal is not None or self.port:
            raise RuntimeError("an origin runs only once: make another one")
        self._files = certificates() if self._tls else None
        with ExitStack() as stack:
            portal = stack.enter_context(start_blocking_portal("asyncio"))
            future, self.port = portal.start_task(self._run)
            stack.callback(future.result)
            self._portal = portal
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        portal, self._portal = self._portal, None
        assert portal is not None
        portal.call(self._stop)
        self._stack.close()
        if error is None:
            self.raise_failures()

    async def __aenter__(self) -> Self:
        return await anyio.to_thread.run_sync(self.__enter__)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self.__exit__, kind, error, traceback)

    async def _run(self, *, task_status: TaskStatus[int]) -> None:
        tcp, udp = self._bind(0)
        async with anyio.create_task_group() as self._tasks:
            self._stop = self._tasks.cancel_scope.cancel
            self._tasks.start_soon(self._listen, tcp, udp)
            task_status.started((tcp or udp).getsockname()[1])  # type: ignore[union-attr]  # there is one of the two
            await anyio.sleep_forever()

    def _bind(self, port: int) -> tuple[socket.socket | None, socket.socket | None]:
        """TCP's listener and UDP's socket on one port; ``None`` for what is not needed. Port 0 means any port."""
        wants_tcp, wants_udp = bool(self.versions & {"h1", "h2"}), "h3" in self.versions
        for _ in range(100):
            tcp = socket.create_server((_HOST, port), backlog=1024) if wants_tcp else None
            udp = socket.socket(type=socket.SOCK_DGRAM) if wants_udp else None
            try:
                if udp is not None:
                    udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
                    udp.bind((_HOST, tcp.getsockname()[1] if tcp is not None else port))
                for sock in filter(None, (tcp, udp)):
                    sock.setblocking(False)
            except OSError:  # another program has this port for UDP: take another
                for sock in filter(None, (tcp, udp)):
                    sock.close()
                if port:
                    raise
            else:
                return tcp, udp
        raise OSError("found no port that is free for both TCP and UDP")

    async def _listen(self, tcp: socket.socket | None, udp: socket.socket | None) -> None:
        """Accept connections until the sockets are closed. The connections outlive the sockets."""
        self._sockets = [sock for sock in (tcp, udp) if sock is not None]
        try:
            async with anyio.create_task_group() as tasks:
                if tcp is not None:
                    tasks.start_soon(self._accept, tcp)
                if udp is not None:
                    assert self._files is not None
                    endpoint = QuicEndpoint(self, udp, self._files, self._tasks, self._connections)
                    tasks.start_soon(endpoint.run)
        finally:
            for sock in (tcp, udp):
                if sock is not None:
                    sock.close()

    async def _accept(self, listener: socket.socket) -> None:
        alpn = [name for version, name in _ALPN.items() if version in self.versions]
        tls = self._files.server_context(alpn) if self._files is not None else None
        while True:
            try:
                sock, _ = listener.accept()
            except BlockingIOError:
                with suppress(anyio.ClosedResourceError):
                    await anyio.wait_readable(listener)
            except OSError:
                if listener.fileno() >= 0:
                    raise
                return  # it is closed
            else:
                number = len(self._connections) + 1
                connection = TcpConnection(number, self, self._tasks, sock, tls, http2="h2" in self.versions)
                self._connections.append(connection)
                self._tasks.start_soon(connection.run)

    def _call(self, action: Callable[[], None]) -> None:
        """Call this in the origin's thread.

        :raises RuntimeError: if the origin is not running.
        """
        if self._portal is None:
            raise RuntimeError("the origin is not running: use it in `with`")
        self._portal.call(action)

    # Misbehaving

    def _set(self, **changes: bool | int | float | None) -> None:
        def change() -> None:
            super(Origin, self)._set(**changes)
            self.changed()
            for connection in self._connections:
                connection.flush_soon()

        self._call(change)

    def goaway(self, after: int = 0) -> None:
        """Have every connection end after some more requests. Requests after those are not executed.

        HTTP/2 and HTTP/3: GOAWAY, and the client ends the connection. HTTP/1.1: ``Connection: close`` in the last
        response, close_notify and FIN; at once if no request is under way.

        :param after: how many more requests each connection accepts.
        :raises ValueError: if that is negative.
        """
        if after < 0:
            raise ValueError(f"after must not be negative: {after!r}")

        self._each(lambda connection: connection.goaway(after))

    def reset(self) -> None:
        """Cut every connection at once: by RST, and in HTTP/3 by CONNECTION_CLOSE with H3_INTERNAL_ERROR."""
        self._each(lambda connection: connection.reset())

    def cancel(self) -> None:
        """Reset all exchanges under way: by RST_STREAM or RESET_STREAM, with INTERNAL_ERROR. HTTP/1.1: by RST."""
        self._each(lambda connection: connection.cancel())

    def restart(self, down: float = 0.0) -> None:
        """Act like a server that is killed and started again on the same port.

        The kernel ends TCP's connections, as when a process is killed. QUIC's connections are forgotten: what comes for
        them is ignored.

        :param down: connections are refused for so many seconds. This method returns at once.
        :raises ValueError: if that is negative.
        """
        if down < 0:
            raise ValueError(f"down must not be negative: {down!r}")

        def restart() -> None:
            for connection in self._open():
                connection.forget()
            for sock in self._sockets:
                anyio.notify_closing(sock)
                sock.close()
            self._sockets = []
            if down:
                self._tasks.start_soon(self._come_back, down)
            else:
                self._come_back_now()

        self._call(restart)

    async def _come_back(self, seconds: float) -> None:
        await anyio.sleep(seconds)
        self._come_back_now()

    def _come_back_now(self) -> None:
        self._tasks.start_soon(self._listen, *self._bind(self.port))

    def _open(self) -> list[Connection]:
        return [connection for connection in self._connections if not connection.ended]

    def _each(self, action: Callable[[Connection], None]) -> None:
        def act() -> None:
            for connection in self._open():
                action(connection)

        self._call(act)

    # Waiting

    def _ended(self, connections: int) -> Callable[[], bool]:
        return lambda: len(self.record.connections) >= connections and not self.record.open()

    def _had(self, kind: type[Event], count: int) -> Callable[[], bool]:
        return lambda: len(self.record.of(kind)) >= count

    def _in_time(self, in_time: bool, what: str, timeout: float) -> None:
        if not in_time:
            raise TimeoutError(f"{what} in {timeout:g} s\n\n{self.record}")

    async def ended(self, connections: int = 1, timeout: float = 10.0) -> None:
        """Wait until at least so many connections have come, and all connections have ended.

        :param connections: how many.
        :param timeout: how many seconds to wait.
        :raises TimeoutError: if that does not happen in time. The error shows the record.
        """
        done = await self.record.until(self._ended(connections), timeout)
        self._in_time(done, f"{counted(connections, 'connection')} had not come and ended", timeout)

    def wait_ended(self, connections: int = 1, timeout: float = 10.0) -> None:
        """Like :meth:`ended`, for synchronous code. It blocks its thread, and the event loop of that thread."""
        done = self.record.wait(self._ended(connections), timeout)
        self._in_time(done, f"{counted(connections, 'connection')} had not come and ended", timeout)

    async def seen(self, kind: type[Event], count: int = 1, timeout: float = 10.0) -> None:
        """Wait until so many events of this kind were recorded: ``await origin.seen(RequestExecuted)``.

        :param kind: the class of the events.
        :param count: how many.
        :param timeout: how many seconds to wait.
        :raises TimeoutError: if that does not happen in time. The error shows the record.
        """
        done = await self.record.until(self._had(kind, count), timeout)
        self._in_time(done, f"{kind.__name__} was not seen {counted(count, 'time')}", timeout)

    def wait_seen(self, kind: type[Event], count: int = 1, timeout: float = 10.0) -> None:
        """Like :meth:`seen`, for synchronous code. It blocks its thread."""
        done = self.record.wait(self._had(kind, count), timeout)
        self._in_time(done, f"{kind.__name__} was not seen {counted(count, 'time')}", timeout)

    # Judging

    def assert_ended_gracefully(self, timeout: float = 2.0) -> None:
        """Check that the client ended every connection as its protocols ask for.

        - Over TCP it must send FIN, and no RST, not even after the FIN. With TLS it must send close_notify before the
          FIN. In HTTP/2 it must send GOAWAY before that, unless the origin did so first.
        - Over QUIC it must send CONNECTION_CLOSE with H3_NO_ERROR.
        - No exchange may be under way.

        A connection without any HTTP is not judged, and no connection that the origin cut, unless it did so because the
        client broke the protocol.

        :param timeout: how many seconds to wait for the ends. The thread is blocked meanwhile. If the client needs its
            event loop to end its connections, call ``await origin.ended()`` first.
        :raises AssertionError: if a connection ended badly. It says which and how, and shows the record.
        """
        __tracebackhide__ = True
        self.record.wait(self._ended(0), timeout)
        require(not_graceful(self.record))

    def assert_no_reset(self) -> None:
        """Check that the client has reset nothing so far.

        It must have sent no RST, RST_STREAM, RESET_STREAM or STOP_SENDING, and no GOAWAY or CONNECTION_CLOSE with an
        error.

        :raises AssertionError: if it has. It says what was reset, and shows the record.
        """
        __tracebackhide__ = True
        require(resets(self.record))
