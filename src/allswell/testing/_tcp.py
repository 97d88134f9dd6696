"""A connection over TCP, with TLS or without: it records how the client ends.

Theory of operation. TLS is in memory, and the socket is ours. So each goodbye of the client is seen by itself: TLS's
close_notify by the record layer, TCP's FIN because ``recv`` returns ``b""``, TCP's RST because it raises.

An RST may also come *after* the FIN: a client that has closed its socket answers our own goodbye by RST. So we do not
close after ``b""``. We send our FIN after the client's, and then ask the kernel whether it was acknowledged (TCP_INFO:
state CLOSE, and no error) or reset. Only Linux has TCP_INFO. Elsewhere this last check is left out.

The kernel reports an error only once, to the first call. If that was a write, a later read returns ``b""``. Then a FIN
came before the RST if the write's error was EPIPE, and none if it was ECONNRESET (Linux, ``tcp_reset``).
"""

from __future__ import annotations

import errno
import socket
import ssl
import struct
from collections import deque
from collections.abc import Callable
from contextlib import suppress

import anyio
from anyio.abc import TaskGroup

from allswell.testing._connection import Connection, Script
from allswell.testing._engine import ByteEngine
from allswell.testing._events import Alert, CloseNotify, Connected, Ended, Fin, Rst, Said, Secured, Violation
from allswell.testing._http1 import Http1
from allswell.testing._http2 import PREFACE, Http2

_CHUNK = 1 << 16
_TCP_CLOSE = 7
_LAST_LOOK = 30.0


class TcpConnection(Connection):
    """One accepted connection. :meth:`run` serves it."""

    over = "TCP"

    def __init__(
        self,
        number: int,
        script: Script,
        tasks: TaskGroup,
        sock: socket.socket,
        tls: ssl.SSLContext | None,
        *,
        http2: bool,
    ) -> None:
        super().__init__(number, script, tasks)
        self._http2 = http2
        self._sock = sock
        sock.setblocking(False)
        if sock.family != getattr(socket, "AF_UNIX", None):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = tls.wrap_bio(self._incoming, self._outgoing, server_side=True) if tls is not None else None
        self._secure = False
        self._wire = bytearray()
        self._sent = 0  # how many bytes were sent
        self._marks: deque[tuple[int, Callable[[], None]]] = deque()  # functions to call when so many bytes were sent
        self._writing = anyio.Lock()
        self._said_close_notify = self._said_fin = False
        self._tcp_ended = self._rst = self._closed = False
        self._send_error: int | None = None
        self._bytes: ByteEngine | None = None

    async def run(self) -> None:
        """Serve it until it has ended."""
        self.note(Connected, self.over)
        try:
            if self._tls is None or await self._handshake(self._tls):
                await self._read()
            if not self._rst:
                self.heard_all()
            self.cut(by_client=True)
            await self._finish()
        except _GoneError:
            pass  # we have cut it, so no more can be seen of it
        finally:
            self.close()
            self.end()

    def end(self) -> None:
        """The connection has ended: record it, once."""
        self.cut(by_client=False)
        if not self.ended:
            self.ended = True
            self.note(Ended)

    def close(self) -> None:
        """Close the socket, and wake the tasks that wait for it."""
        if not self._closed:
            self._closed = True
            anyio.notify_closing(self._sock)
            self._sock.close()

    # Reading

    async def _handshake(self, tls: ssl.SSLObject) -> bool:
        while True:
            try:
                tls.do_handshake()
            except ssl.SSLWantReadError:
                await self.flush()
                wire = await self._recv()
                if not wire:
                    return False
                self._incoming.write(wire)
            except ssl.SSLError as error:
                self.note(Alert, error.reason or str(error))
                await self.flush()
                return False
            else:
                self._secure = True
                self.note(Secured, tls.version() or "", tls.selected_alpn_protocol() or "")
                await self.flush()
                return True

    async def _read(self) -> None:
        """Give the engine the client's data, until the client's goodbye of TLS, or of TCP without TLS."""
        early = b""
        while data := await self._recv_data():
            if self._bytes is None:
                early += data
                engine = self._choose(early)
                if engine is None:
                    continue
                data = early
                self._bytes = engine
                self.speak(engine)
                if self.leaves_after is not None:
                    self.goaway(self.leaves_after)
            self.hear(self._bytes.receive(data))
            await self.flush()

    def _choose(self, early: bytes) -> ByteEngine | None:
        """Choose the version by ALPN, or without ALPN by the first bytes. ``None`` if those are still too few."""
        alpn = self._tls.selected_alpn_protocol() if self._tls is not None else None
        if alpn == "h2" or (alpn is None and self._http2 and early.startswith(PREFACE)):
            return Http2()
        if alpn is None and self._http2 and PREFACE.startswith(early):
            return None
        return Http1()

    async def _recv_data(self) -> bytes:
        """The next application data. At their end record how they ended, and return ``b""``."""
        if self._tls is None:
            return await self._recv()
        while True:
            try:
                data = self._tls.read(_CHUNK)
            except ssl.SSLWantReadError:
                await self.flush()  # a key update may have to be answered
                wire = await self._recv()
                if not wire:
                    return b""
                self._incoming.write(wire)
            except ssl.SSLZeroReturnError:  # close_notify; after our own close_notify it is raised in place of b""
                self.note(CloseNotify)
                return b""
            except ssl.SSLError as error:
                self.note(Alert, error.reason or str(error))
                return b""
            else:
                if not data:
                    self.note(CloseNotify)
                return data

    async def _recv(self) -> bytes:
        """The next bytes of TCP. At their end record how they ended, and return ``b""``.

        :raises _GoneError: if we have closed the socket ourselves.
        """
        while not self._tcp_ended:
            if self._closed:
                raise _GoneError
            try:
                data = self._sock.recv(_CHUNK)
            except BlockingIOError:
                try:
                    await anyio.wait_readable(self._sock)
                except (anyio.ClosedResourceError, OSError, ValueError):
                    if self._closed:
                        raise _GoneError from None
                    raise
            except ConnectionResetError:
                self._tcp_ended = True
                self._note_rst()
            else:
                if data:
                    return data
                self._tcp_ended = True
                if self._send_error != errno.ECONNRESET:
                    self.note(Fin)
                if self._send_error is not None:
                    self._note_rst()
        return b""

    def _note_rst(self) -> None:
        if not self._rst:
            self._rst = True
            self.note(Rst)

    # Writing

    async def flush(self) -> None:
        """See the base class."""
        self._encrypt()
        self._send()
        while self._blocked:
            async with self._writing:
                if self._blocked:
                    with suppress(anyio.ClosedResourceError):
                        await anyio.wait_writable(self._sock)
                    self._send()

    def once_sent(self, action: Callable[[], None]) -> None:
        """See the base class."""
        self._encrypt()
        self._marks.append((self._sent + len(self._wire), action))
        self._send()

    def _encrypt(self) -> None:
        """Take the output of the layers above TCP."""
        data = self._bytes.take() if self._bytes is not None and not self.left else b""
        if self._tls is None:
            self._wire += data
            return
        view = memoryview(data)
        while view:
            view = view[self._tls.write(view) :]
        self._wire += self._outgoing.read()

    @property
    def _blocked(self) -> bool:
        """Whether there are bytes to send, and they may be sent."""
        if self._closed or self._said_fin or self._send_error is not None:
            return False
        return bool(self._wire) and not self.script.faults.silent

    def _send(self) -> None:
        """Send as much as TCP takes at once."""
        while self._blocked:
            try:
                sent = self._sock.send(self._wire)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno not in (errno.ECONNRESET, errno.EPIPE):
                    raise
                self._send_error = error.errno
                if self._tcp_ended:
                    self._note_rst()
            else:
                del self._wire[:sent]
                self._sent += sent
        while self._marks and self._marks[0][0] <= self._sent:
            self._marks.popleft()[1]()

    # Ending

    async def leave(self) -> None:
        """Send close_notify and FIN, once. Reading goes on."""
        await self.flush()
        if self._secure and not self._said_close_notify:
            self._said_close_notify = self.left = True
            assert self._tls is not None
            try:
                self._tls.unwrap()
            except ssl.SSLError:
                pass  # ours is written, and the client's has not come yet
            self.note(Said, "close_notify")
            await self.flush()
        self._fin()

    def _fin(self, *, cut: bool = False) -> None:
        if self._said_fin or self._closed:
            return
        self._said_fin = self.left = True
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            if error.errno != errno.ENOTCONN:  # ENOTCONN: the client has sent RST, which reading records
                raise
        else:
            self.note(Said, "FIN", cut)  # (no event can come between the two)

    async def truncate(self) -> None:
        """Send FIN in the middle of a body, without close_notify."""
        await self.flush()
        self.cut(by_client=False)
        self._fin(cut=True)

    def reset(self) -> None:
        """Send RST at once."""
        if not self._closed:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.note(Said, "RST", True)
            self.close()

    def forget(self) -> None:
        """Close the socket, as the kernel does when a process ends."""
        if not self._closed:
            self.note(Said, "FIN", True)
            self.close()

    async def _finish(self) -> None:
        """The client has ended: read TCP to its end, say our goodbyes, and look whether an RST follows."""
        while self.script.faults.silent:
            if not self._tcp_ended:
                await self._trailing()
            self.end()
            await self.script.change()
        if not self._rst:
            await self.leave()
        if not self._tcp_ended:
            await self._trailing()
        if not self._rst:
            await self._last_look()

    async def _trailing(self) -> None:
        size = 0
        while wire := await self._recv():
            size += len(wire)
        if size:
            self.note(Violation, f"{size} bytes after TLS had ended")

    async def _last_look(self) -> None:
        """Both sides have sent FIN. Wait until the client's kernel has acknowledged ours, or has sent RST."""
        if not hasattr(socket, "TCP_INFO") or self._sock.family == getattr(socket, "AF_UNIX", None):
            return
        with anyio.move_on_after(_LAST_LOOK):
            while not self._closed and self._tcp_state() != _TCP_CLOSE:  # noqa: ASYNC110  nothing wakes us for an ACK
                await anyio.sleep(0.001)
        if not self._closed and self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._note_rst()

    def _tcp_state(self) -> int:
        return self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]


class _GoneError(Exception):
    """The socket was closed by the origin itself."""
