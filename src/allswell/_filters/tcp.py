"""The TCP filter (and the Unix domain socket): a raw non-blocking socket, ended by FIN and a drain, or by RST.

``close()`` on a socket with unread input sends RST, and so does any input that arrives after ``close()``. TLS 1.3
session tickets are such input: a client that closes right after its response resets. Hence the order of
:meth:`TcpFilter.shutdown`: FIN (``shutdown(SHUT_WR)``), then read and drop what still comes until the peer's FIN,
only then ``close()`` (RFC 9293 §3.6, RFC 9112 §9.6).
"""

from __future__ import annotations

import socket
import struct
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Literal

import anyio

from allswell._clock import monotonic
from allswell._deadline import Deadline
from allswell._errors import TransportError
from allswell._filters.interface import ByteStream, ReceiveBuffer
from allswell._filters.patience import Patience
from allswell._report import LayerEnd, Outcome
from allswell._tasks import TaskHost, current_host

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER, 0 s: RST


class TcpFilter(ByteStream):
    """A TCP connection.

    :param peer: what errors call the other end, e.g. ``"example.org:443"``.
    :param dial: makes the connected, non-blocking socket; raises :class:`~allswell._errors.ConnectFailed`.
    :param buffer: what to receive into.
    :param patience: how long the peer's FIN is worth waiting for.
    """

    name = "tcp"

    def __init__(
        self,
        peer: str,
        dial: Callable[[], Awaitable[socket.socket]],
        buffer: ReceiveBuffer,
        patience: Patience | None = None,
    ) -> None:
        self._peer = peer
        self._patience = patience or Patience()
        self._dial = dial
        self._buffer = buffer.wire
        self._sock: socket.socket | None = None
        self._host: TaskHost | None = None
        self._listening = False
        self._queue: deque[memoryview] = deque()
        self._unsent = 0
        self._emptied = False
        self._heard = ""
        self._write_error: OSError | None = None
        self._end: LayerEnd | None = None

    async def connect(self) -> None:
        self._host = current_host()
        self._sock = await self._dial()

    # Reading

    def receive_nowait(self) -> memoryview | None:
        if self._emptied:
            # The last read did not fill the buffer, so the socket was empty: spare the call that would say so.
            self._emptied = False
            return None
        buffer = self._buffer
        try:
            size = self._socket("read").recv_into(buffer)
        except BlockingIOError:
            return None
        except OSError as error:
            raise self._lost("read", error) from error
        if size == 0:
            if self._write_error is not None:
                # The reset was told to a write first; for reads it looks like an orderly end, which it is not.
                raise self._lost("read", self._write_error) from self._write_error
            self._heard = self._heard or "FIN"
            return buffer[:0]
        self._emptied = size < len(buffer)
        return buffer[:size]

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

    def transmit(self, data: bytes) -> None:
        if self._write_error is not None or self._sock is None or not data:
            return
        sent = 0
        if not self._queue:
            sent = self._send(data)
        if sent < len(data) and self._write_error is None:
            self._queue.append(memoryview(data)[sent:])
            self._unsent += len(data) - sent

    @property
    def dead(self) -> bool:
        return self._write_error is not None

    @property
    def unsent(self) -> int:
        return self._unsent

    async def flush(self) -> None:
        while self._queue:
            try:
                await anyio.wait_writable(self._socket("write"))
            except (anyio.ClosedResourceError, OSError) as error:
                raise self._lost("write", error) from error
            while self._queue:
                piece = self._queue[0]
                sent = self._send(piece)
                if self._write_error is not None:
                    break  # and the queue is empty
                self._unsent -= sent
                if sent < len(piece):
                    self._queue[0] = piece[sent:]
                    break
                self._queue.popleft()
        if self._write_error is not None:
            raise self._lost("write", self._write_error) from self._write_error

    def _send(self, data: bytes | memoryview) -> int:
        assert self._sock is not None
        try:
            return self._sock.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            # The peer is gone. Dead at once, or every later write would try again; what it said last can still be read.
            self._write_error = error
            self._queue.clear()
            self._unsent = 0
            return 0

    # Ending

    async def shutdown(self, deadline: Deadline) -> LayerEnd:
        if self._end is not None:
            return self._end
        if self._sock is None:
            self._end = LayerEnd(self.name, "", "", Outcome.SKIPPED)
            return self._end
        began = monotonic()
        peer_first = self._heard == "FIN"
        said = ""
        try:
            if await self.delivered(deadline):
                self._sock.shutdown(socket.SHUT_WR)
                said = "FIN"
                self._discard()
                with deadline.sooner(self._patience.seconds).scope():
                    while not self._heard:
                        await self.wait_readable()
                        self._discard()
        except (OSError, TransportError):
            # A reset or another loss, or unsent bytes that the peer never took: there is nobody to be polite to.
            self._heard = self._heard or "RST"
        if self._end is not None:
            return self._end  # aborted while we waited
        seconds = monotonic() - began
        if said == "FIN" and self._heard == "FIN":
            self._patience.answered()
            outcome = Outcome.PEER_FIRST if peer_first else Outcome.CLEAN
            return self._close(LayerEnd(self.name, said, self._heard, outcome, seconds))
        if self._heard == "RST":
            return self._close(LayerEnd(self.name, said, self._heard, Outcome.ABORTED, seconds))
        if said:
            self._patience.unanswered(seconds)
            return self._close(LayerEnd(self.name, said, self._heard, Outcome.TIMED_OUT, seconds))
        # Part of what we owed is still here: a FIN now would make it look complete.
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        return self._close(LayerEnd(self.name, "RST", self._heard, Outcome.TIMED_OUT, seconds))

    def abort(self, *, reset: bool = True) -> LayerEnd:
        if self._end is not None:
            return self._end
        if self._sock is None:
            self._end = LayerEnd(self.name, "", "", Outcome.SKIPPED)
            return self._end
        said = "" if self._heard == "RST" or self._write_error is not None else "RST" if reset else "FIN"
        if reset:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        return self._close(LayerEnd(self.name, said, self._heard, Outcome.ABORTED))

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
        """Read once and drop it. (A loop until nothing is left could be held here by a peer that never stops.)"""
        self._emptied = False
        self.receive_nowait()

    def _close(self, end: LayerEnd) -> LayerEnd:
        assert self._sock is not None
        self._end = end
        self._emptied = False
        self._queue.clear()
        self._unsent = 0
        self.listen(None)
        anyio.notify_closing(self._sock)  # whoever waits for it learns; and the event loop forgets the descriptor
        self._sock.close()
        self._sock = None
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
