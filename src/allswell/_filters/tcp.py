"""The TCP filter (and the Unix domain socket): a raw non-blocking socket, ended by FIN and a drain, or by RST.

``close()`` on a socket with unread input sends RST. Input that arrives after ``close()`` is answered by RST, too. TLS
1.3 session tickets are such input, so a client that closes right after its response resets. Hence
:meth:`TcpFilter.shutdown` first sends FIN (``shutdown(SHUT_WR)``), then reads and drops what still comes until the
peer's FIN, and only then calls ``close()`` (RFC 9293 §3.6, RFC 9112 §9.6).

A forked process may hold the socket, too, and ``close()`` sends nothing while it does. So FIN is sent by
``shutdown()``, and RST is sent at once if the system can do that (:func:`_reset_now`).
"""

from __future__ import annotations

import select
import socket
import struct
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Literal

import anyio

from allswell._clock import monotonic
from allswell._deadline import Deadline
from allswell._errors import TransportError
from allswell._filters.goodbye_timeout import GoodbyeTimeout
from allswell._filters.interface import LAST_READS, ByteStream, ReceiveBuffer
from allswell._report import LayerEnd, Outcome
from allswell._tasks import TaskHost, current_host

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER, 0 s: RST


class TcpFilter(ByteStream):
    """A TCP connection.

    :param peer: what errors call the other end, e.g. ``"example.org:443"``.
    :param dial: makes the connected, non-blocking socket; raises :class:`~allswell._errors.ConnectFailed`.
    :param buffer: what to receive into.
    :param goodbye_timeout: how long to wait for the peer's FIN.
    :param host: the event loop; ``None``: the one in which it connects.
    """

    name = "tcp"
    drained = False
    unsent = 0

    def __init__(
        self,
        peer: str,
        dial: Callable[[], Awaitable[socket.socket]],
        buffer: ReceiveBuffer,
        goodbye_timeout: GoodbyeTimeout | None = None,
        host: TaskHost | None = None,
    ) -> None:
        self._peer = peer
        self._goodbye_timeout = goodbye_timeout or GoodbyeTimeout()
        self._dial: Callable[[], Awaitable[socket.socket]] | None = dial
        self._buffer = buffer.wire
        self._sock: socket.socket | None = None
        self._poll: select.poll | None = None  # looks at the socket
        self._host = host
        self._listening = False
        self._queue: list[memoryview] = []
        self.unsent = 0
        self.drained = False
        self._heard = ""
        self._said = ""
        self._peer_first = False
        self._write_error: OSError | None = None
        self._end: LayerEnd | None = None

    async def connect(self) -> None:
        assert self._dial is not None
        dial, self._dial = self._dial, None  # (what it refers to is of no more use)
        self._host = self._host or current_host()
        self._sock = await dial()
        if hasattr(select, "poll"):  # (Windows has none)
            self._poll = select.poll()
            self._poll.register(self._sock, select.POLLIN)

    # Reading

    def receive_nowait(self) -> memoryview | None:
        buffer = self._buffer
        sock = self._sock or self._socket("read")
        try:
            size = sock.recv_into(buffer)
        except BlockingIOError:
            return None
        except OSError as error:
            raise self._lost("read", error) from error
        if size == 0:
            if self._write_error is not None:
                # A write has got the error of a reset. So the kernel tells reads of an orderly end, which it was not.
                raise self._lost("read", self._write_error) from self._write_error
            self._heard = self._heard or "FIN"
            return buffer[:0]
        self.drained = size < len(buffer)  # then the socket is empty, and another call would only say so
        return buffer[:size]

    def quiet(self) -> bool:
        if self._poll is not None and not self._poll.poll(0):
            return True  # (a recv that raises takes four times as long)
        try:
            self._socket("read").recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError as error:
            raise self._lost("read", error) from error
        return False

    async def wait_readable(self) -> None:
        try:
            await anyio.wait_readable(self._socket("read"))
        except (anyio.ClosedResourceError, OSError) as error:
            raise self._lost("read", error) from error

    def listen(self, function: Callable[[], None] | None) -> bool:
        if self._sock is None or self._host is None:
            return function is None
        if function is not None or self._listening:
            self._listening = self._host.watch_readable(self._sock, function) and function is not None
        return self._listening

    # Writing

    def transmit(self, data: bytes | memoryview) -> None:
        if self._write_error is not None or self._sock is None or self._said or not data:
            return
        sent = 0
        if not self._queue:
            sent = self._send(data)
        if sent < len(data) and self._write_error is None:
            self._queue.append(memoryview(data)[sent:])
            self.unsent += len(data) - sent

    @property
    def dead(self) -> bool:
        return self._write_error is not None

    async def flush(self) -> None:
        while self._queue:
            try:
                await anyio.wait_writable(self._socket("write"))
            except (anyio.ClosedResourceError, OSError) as error:
                raise self._lost("write", error) from error
            self.catch_up()
        if self._write_error is not None:
            raise self._lost("write", self._write_error) from self._write_error

    def catch_up(self) -> None:
        """Send from the queue until it is empty or the socket is full."""
        gone = 0
        for piece in self._queue:
            sent = self._send(piece)
            if self._write_error is not None:
                return  # and the queue is empty
            self.unsent -= sent
            if sent < len(piece):
                self._queue[gone] = piece[sent:]
                break
            gone += 1
        del self._queue[:gone]

    def _send(self, data: bytes | memoryview) -> int:
        assert self._sock is not None
        try:
            return self._sock.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            # The peer is gone, so no later write may try again. Its last words can still be read.
            self._write_error = error
            self._queue.clear()
            self.unsent = 0
            return 0

    # Ending

    def say_goodbye(self) -> None:
        # If a part of what we have to send is still here, no FIN may go: what was sent would look complete.
        if self._sock is not None and not self._said and not self.unsent and self._write_error is None:
            self._say_fin(self._sock)

    def _say_fin(self, sock: socket.socket) -> None:
        # By shutdown(): close() sends nothing while a process that was forked from ours holds the socket, too.
        self._peer_first = self._heard == "FIN"
        try:
            sock.shutdown(socket.SHUT_WR)
            self._said = "FIN"
        except OSError:
            self._heard = "RST"  # also after a FIN: the peer is gone

    async def shutdown(self, deadline: Deadline) -> LayerEnd:
        if self._end is not None:
            return self._end
        if self._sock is None:
            self._end = LayerEnd(self.name, "", "", Outcome.SKIPPED)
            return self._end
        began = monotonic()
        try:
            if await self.delivered(deadline):
                self.say_goodbye()
                self._discard()
                patient = deadline.sooner(self._goodbye_timeout.seconds)
                if not (self._heard or patient.passed()):
                    with patient.scope():
                        while not self._heard:
                            await self.wait_readable()
                            self._discard()
        except TransportError:
            # A reset or another loss, or unsent bytes that the peer never took.
            self._heard = self._heard or "RST"
        if self._end is not None:
            return self._end  # aborted while we waited
        seconds = monotonic() - began
        if self._said and self._heard == "FIN":
            self._goodbye_timeout.answered()
        elif self._said and not self._heard:
            self._goodbye_timeout.unanswered(seconds)
        if self._said or self._heard == "RST":
            return self._ended(seconds)
        # A part of what we have to send is still here. With a FIN, what was sent would look complete.
        return self._close(LayerEnd(self.name, self._reset(self._sock), self._heard, Outcome.TIMED_OUT, seconds))

    def abort(self, *, reset: bool = True) -> LayerEnd:
        if self._end is not None:
            return self._end
        sock = self._sock
        if sock is None:
            self._end = LayerEnd(self.name, "", "", Outcome.SKIPPED)
            return self._end
        if self._said:
            return self._ended(0.0)
        if self._heard != "RST" and self._write_error is None:
            if reset:
                self._said = self._reset(sock)
            else:
                self._say_fin(sock)
        return self._close(LayerEnd(self.name, self._said, self._heard, Outcome.ABORTED))

    def so_far(self) -> LayerEnd:
        return self._end or self._layer_end(0.0)

    def _layer_end(self, seconds: float) -> LayerEnd:
        """The end, after our FIN or the peer's RST."""
        if self._heard == "RST":
            outcome = Outcome.ABORTED
        elif self._said and self._heard:
            outcome = Outcome.PEER_FIRST if self._peer_first else Outcome.CLEAN
        else:
            outcome = Outcome.TIMED_OUT
        return LayerEnd(self.name, self._said, self._heard, outcome, seconds)

    def _ended(self, seconds: float) -> LayerEnd:
        self._drain()
        return self._close(self._layer_end(seconds))

    def _reset(self, sock: socket.socket) -> str:
        """End it by RST. Return what was said."""
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        _reset_now(sock)
        return "RST"

    def extra(self, name: str) -> Any:
        sock = self._sock
        if name == "socket":
            return sock
        if sock is not None and name == "client_addr":
            return sock.getsockname()
        if sock is not None and name == "server_addr":
            return sock.getpeername()
        return None

    def _discard(self) -> None:
        """Read once, and drop that. (A loop until nothing is left might never end if the peer never stops.)"""
        self.receive_nowait()

    def _drain(self) -> None:
        """Read what has come, because close() would answer unread bytes by RST. Stop if the peer never stops."""
        try:
            for _ in range(LAST_READS):
                data = self.receive_nowait()
                if data is None or not len(data):
                    break
        except TransportError:
            pass  # it was reset, so nothing is left to read, and an RST would reach nobody

    def _close(self, end: LayerEnd) -> LayerEnd:
        assert self._sock is not None
        self._end = end
        self._queue.clear()
        self.unsent = 0
        self.listen(None)
        if self._host is not None and self._host.current:  # and not over
            anyio.notify_closing(self._sock)  # this wakes its waiter, and the event loop forgets the descriptor
        self._sock.close()
        self._sock = self._poll = None
        return end

    def _socket(self, operation: Literal["read", "write"]) -> socket.socket:
        if self._sock is None:
            raise TransportError(f"the connection to {self._peer} is closed", operation=operation, by="us")
        return self._sock

    def _lost(self, operation: Literal["read", "write"], error: Exception) -> TransportError:
        if self._sock is None or isinstance(error, anyio.ClosedResourceError):
            return TransportError(f"the connection to {self._peer} was closed here", operation=operation, by="us")
        if isinstance(error, (ConnectionResetError, BrokenPipeError)):
            self._heard = "RST"
            return TransportError(f"{self._peer} reset the connection", operation=operation, by="peer")
        return TransportError(f"lost the connection to {self._peer}: {error}", operation=operation)


def _reset_now(sock: socket.socket) -> None:
    """Have the kernel send RST at once, if it can: on Linux, by connect(2) with the address family AF_UNSPEC.

    close() sends it too (SO_LINGER), but only for the last descriptor of the socket, and a process that was forked
    from ours may hold one as long as it lives. (Python's socket module has no such address, so the C library is used.)
    """
    if sys.platform == "linux" and sock.family != socket.AF_UNIX:
        with suppress(ImportError, OSError):  # a Python without ctypes, or without a C library to be called
            import ctypes

            ctypes.CDLL(None).connect(sock.fileno(), bytes(16), 16)
