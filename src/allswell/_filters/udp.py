"""The UDP filter: one connected, non-blocking socket that receives and sends datagrams in batches.

Most of UDP's cost in user space is the system call for each datagram. On Linux, ``UDP_GRO`` gives a run of datagrams
with one ``recvmsg``, and ``UDP_SEGMENT`` takes a run with one ``sendmsg``. Elsewhere, and if a network interface
refuses, each datagram takes a call.

The socket is connected, so the kernel reports ICMP errors:

- ``ECONNREFUSED`` (port unreachable) means that the peer is gone. It is raised.
- The others (no route, interface down) are only hints, because any router may send them. They count as the loss of a
  datagram, which the layer above repairs. ``obstacle`` keeps the last one, for a connection that hears nothing else.
- ``ENOBUFS`` and ``EMSGSIZE`` of a send cost that datagram only.

The kernel reports an ICMP error at the next call of any kind. If that is a send, it has sent nothing, and is made
again. A full socket (``EAGAIN``) loses nothing: :meth:`UdpFilter.flush` sends what did not fit.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import sys
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice, takewhile
from typing import Any

import anyio

from allswell._addresses import SocketAddress
from allswell._clock import monotonic
from allswell._config import SocketOption
from allswell._deadline import Deadline
from allswell._errors import ConnectFailed, TransportError
from allswell._filters.interface import Datagrams, Run
from allswell._report import LayerEnd, Outcome
from allswell._tasks import TaskHost

# From linux/udp.h and linux/in.h; the socket module does not name them.
_UDP_SEGMENT, _UDP_GRO = 103, 104
_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE = 10, 23, 3

_RECEIVE_BUFFER = 4 * 1024 * 1024
_LARGEST = 65535
#: How many datagrams one batch has. The last call to the kernel may give more than fit. (What follows a batch, in QUIC
#: and HTTP/3, is done once for each stream that it has data of.)
_BATCH = 128
#: The kernel takes at most so many segments in one call, and together no more bytes than one IP packet holds.
_SEGMENTS, _SEGMENTED_BYTES = 64, 65000
_IP_RECVTOS = 13
_ANCILLARY = 2 * socket.CMSG_SPACE(4) if hasattr(socket, "CMSG_SPACE") else 0
#: The port is unreachable. The second is what Windows raises.
_UNREACHABLE = ConnectionRefusedError, ConnectionResetError
#: Errors of a send after which the datagram is lost, and the socket still works.
_LOST_DATAGRAM = frozenset(
    {errno.ENOBUFS, errno.EMSGSIZE, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.EPERM, errno.EACCES}
)


class UdpFilter(Datagrams):
    """Datagrams to and from one address.

    :param family: ``socket.AF_INET`` or ``AF_INET6``.
    :param address: the peer's socket address, resolved.
    :param local_address: the address to send from, or ``None`` for the system's choice.
    :param check: checks the address for a :meth:`sibling`. It raises ``ConnectFailed`` if that is not allowed.
    """

    name = "udp"

    def __init__(
        self,
        family: int,
        address: SocketAddress,
        *,
        local_address: str | None = None,
        socket_options: Sequence[SocketOption] = (),
        check: Callable[[SocketAddress], None] | None = None,
    ) -> None:
        self.address = address
        self._check = check
        self._family = family
        self._local_address = local_address
        self._options = socket_options
        self._sock: socket.socket | None = None
        self._gro = self._gso = self._hears_marks = False
        #: The ECN bits (RFC 3168 §5) to send with: 0, or ECT(0) if the system can.
        self.ecn = 0
        self._queue: deque[bytes] = deque()
        self._refused: OSError | None = None
        self._end: LayerEnd | None = None
        self._host: TaskHost | None = None
        self._listener: Callable[[], None] | None = None
        self._lost = 0

    async def connect(self) -> None:
        self._use(self._open(self._local_address))

    def rebind(self, local_address: str | None = None) -> None:
        """Go on from a new local port, and from another local address if one is given (RFC 9000 §9).

        :raises ConnectFailed: if no such socket can be made. The old one stays.
        """
        sock = self._open(local_address if local_address is not None else self._local_address)
        listener, host = self._listener, self._host
        self._forget()
        self._use(sock)
        if listener is not None and host is not None:
            self.listen(host, listener)

    def sibling(self, address: SocketAddress) -> UdpFilter:
        """Make another filter, connected to another address of the same family.

        :raises ConnectFailed: if no such socket can be made, or the address is not allowed.
        """
        if self._check is not None:
            self._check(address)
        other = UdpFilter(self._family, address, local_address=self._local_address, socket_options=self._options)
        other.ecn = self.ecn
        other._use(other._open(self._local_address))
        return other

    def swap(self, other: Datagrams) -> None:
        """Exchange socket and peer with the other filter. What is unsent is lost."""
        assert isinstance(other, UdpFilter)
        listener, host = self._listener, self._host
        if listener is not None and host is not None:
            self.listen(host, None)
        for each in (self, other):
            each._queue.clear()
            if each._sock is not None:
                anyio.notify_closing(each._sock)  # a task that waits for it goes on to wait for the new one
        for name in ("address", "_sock", "_gro", "_gso", "_hears_marks", "_refused"):
            ours, theirs = getattr(self, name), getattr(other, name)
            setattr(self, name, theirs)
            setattr(other, name, ours)
        if listener is not None and host is not None:
            self.listen(host, listener)

    def _open(self, local_address: str | None) -> socket.socket:
        sock = socket.socket(self._family, socket.SOCK_DGRAM)
        try:
            sock.setblocking(False)
            with contextlib.suppress(OSError):  # if this is more than the system allows, it gives what it has
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
            for option in self._options:
                sock.setsockopt(*option)
            if local_address is not None:
                sock.bind((local_address, 0))
            sock.connect(self.address)
        except OSError as error:
            sock.close()
            raise ConnectFailed(f"cannot open a UDP socket to {self.address[0]}: {error}", phase="quic") from error
        return sock

    def _use(self, sock: socket.socket) -> None:
        self._sock = sock
        self._refused = None
        self._gro = self._gso = self._hears_marks = False
        if sys.platform != "linux":
            return
        # RFC 9000 §14: never fragment. PROBE: do not believe an ICMP that lowers the MTU.
        with contextlib.suppress(OSError):
            if self._family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE)
            else:
                sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_PROBE)
        with contextlib.suppress(OSError):
            if self._family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, 1)
            else:
                sock.setsockopt(socket.IPPROTO_IP, _IP_RECVTOS, 1)
            self._hears_marks = True
        self.send_marked(self.ecn)
        with contextlib.suppress(OSError):  # kernels before 5.0
            sock.setsockopt(socket.SOL_UDP, _UDP_GRO, 1)
            self._gro = True
        with contextlib.suppress(OSError):  # kernels before 4.18
            sock.getsockopt(socket.SOL_UDP, _UDP_SEGMENT)
            self._gso = True

    def send_marked(self, ecn: int) -> bool:
        """Send with these ECN bits from now on. Return whether the system can, and shows the bits of what comes."""
        sock = self._sock
        if sock is None or not self._hears_marks:
            return False
        if self._family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, ecn)
        else:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, ecn)
        self.ecn = ecn
        return True

    # Receiving

    def receive_nowait(self) -> list[Run] | None:
        """Return the datagrams that have arrived, about one batch at most; ``None`` if there are none.

        :raises TransportError: when the peer's port is unreachable, or the socket is closed.
        """
        sock = self._socket()
        if self._refused is not None:
            error, self._refused = self._refused, None
            raise self._unreachable(error)
        runs: list[Run] = []
        pieces: list[bytes] = []
        ends: list[int] = []
        mark = length = 0
        for _ in range(_BATCH):
            if len(ends) >= _BATCH:
                break
            try:
                size, before = 0, mark
                if self._gro or self._hears_marks:
                    data, ancillary, _, _ = sock.recvmsg(_LARGEST, _ANCILLARY)
                    mark = 0
                    for level, _, value in ancillary:
                        if level == socket.SOL_UDP:
                            size = int.from_bytes(value, sys.byteorder)
                        else:
                            mark = int.from_bytes(value, sys.byteorder) & 3
                else:
                    data = sock.recv(_LARGEST)
            except BlockingIOError:
                break
            except _UNREACHABLE as error:
                if pieces:  # first return what came before the error
                    self._refused = error
                    break
                raise self._unreachable(error) from error
            except OSError as error:
                if error.errno != errno.EMSGSIZE:  # RFC 9000 §14.2.1: QUIC does not trust ICMP about the MTU
                    self.obstacle = error
                continue  # only a hint: see the module
            if mark != before and pieces:
                runs.append(Run(b"".join(pieces), ends, before))
                pieces, ends, length = [], [], 0
            start, length = length, length + len(data)
            if size:
                ends += range(start + size, length, size)
            ends.append(length)
            pieces.append(data)
        if pieces:
            runs.append(Run(b"".join(pieces), ends, mark))
        return runs or None

    def listen(self, host: TaskHost, function: Callable[[], None] | None) -> bool:
        """See :meth:`Carrier.listen`."""
        if self._sock is None:
            return function is None
        if function is not None or self._listener is not None:
            self._listener = function if host.watch_readable(self._sock, function) else None
            self._host = host
        return self._listener is not None

    async def wait_readable(self) -> None:
        """Wait for datagrams, or for an error to read.

        :raises TransportError: when the socket is closed meanwhile.
        """
        if self._refused is not None:
            return
        try:
            await anyio.wait_readable(self._socket())
        except (anyio.ClosedResourceError, OSError) as error:
            if self._end is None and self._sock is not None:
                return  # rebound: the caller waits for the new socket
            raise TransportError("the UDP socket was closed here", operation="read", by="us") from error

    # Sending

    def send(self, datagrams: Sequence[bytes]) -> None:
        """Send as many of these as the socket takes now, and keep the rest for :meth:`flush`. Never raises."""
        if self._sock is None:
            return
        self._queue.extend(datagrams)
        if len(self._queue) == len(datagrams):
            self._pump()

    @property
    def lost(self) -> int:
        return self._lost

    @property
    def failed(self) -> bool:
        """Whether a send failed for good (the port is unreachable). The next read raises the error."""
        return self._refused is not None

    @property
    def unsent(self) -> int:
        """How many bytes the socket has not taken yet."""
        return sum(map(len, self._queue)) if self._queue else 0

    async def flush(self) -> None:
        """Wait until the socket has taken all that is unsent.

        :raises TransportError: when the socket is closed meanwhile.
        """
        while self._queue:
            try:
                await anyio.wait_writable(self._socket())
            except (anyio.ClosedResourceError, OSError) as error:
                if self._end is None and self._sock is not None:
                    continue  # rebound
                raise TransportError("the UDP socket was closed here", operation="write", by="us") from error
            self._pump()

    def catch_up(self) -> None:
        if self._sock is not None:
            self._pump()

    def _pump(self) -> None:
        """Send from the queue until it is empty or the socket is full."""
        assert self._sock is not None
        sock, queue = self._sock, self._queue
        again = False
        while queue:
            run = self._run() if self._gso and len(queue) > 1 else 1
            try:
                if run > 1:
                    pieces = list(islice(queue, run))
                    segment = struct.pack("=H", len(pieces[0]))
                    sock.sendmsg(pieces, [(socket.SOL_UDP, _UDP_SEGMENT, segment)])
                else:
                    sock.send(queue[0])
            except BlockingIOError:
                return
            except _UNREACHABLE as error:
                # The error is about an earlier datagram, and this one was not sent. Keep it for the reader. The kernel
                # reports it once, so the next call works again.
                self._refused = error
                queue.clear()
                return
            except OSError as error:
                if not again:
                    again = True  # try again: the error may be about an earlier datagram
                    continue
                if run > 1 and error.errno in (errno.EIO, errno.EINVAL, errno.EMSGSIZE, errno.EOPNOTSUPP):
                    self._gso = False  # the interface cannot do it: one by one from now on
                    continue
                if error.errno not in _LOST_DATAGRAM:
                    self._refused = error
                    queue.clear()
                    return
                if error.errno != errno.ENOBUFS:
                    self.obstacle = error
                self._lost += run * (error.errno != errno.EMSGSIZE)  # its size says nothing of the route
            again = False
            if run == len(queue):
                queue.clear()
            else:
                for _ in range(run):
                    queue.popleft()

    def _run(self) -> int:
        """How many datagrams can go in one call, from the first. All have one size, but the last may be shorter."""
        sizes = list(map(len, islice(self._queue, _SEGMENTS)))
        size = sizes[0]
        most = max(1, _SEGMENTED_BYTES // size) if size else 1
        run = len(list(takewhile(size.__eq__, sizes[:most])))
        shorter = run < len(sizes) and sizes[run] < size and run * size + sizes[run] <= _SEGMENTED_BYTES
        return run + shorter

    # Ending

    async def shutdown(self, deadline: Deadline) -> LayerEnd:
        """Send what is unsent, until the deadline, and close the socket. UDP has no goodbye."""
        if self._end is None and self._sock is not None:
            began = monotonic()
            if self._queue:
                with deadline.scope(), contextlib.suppress(TransportError):  # closed meanwhile: nothing is left to send
                    await self.flush()
            self._close(LayerEnd(self.name, "", "", Outcome.CLEAN, monotonic() - began))
        return self.abort()

    def abort(self, *, reset: bool = True) -> LayerEnd:
        """Close the socket. The peer sees no difference from :meth:`shutdown`."""
        if self._end is None:
            connected = self._sock is not None
            self._close(LayerEnd(self.name, "", "", Outcome.CLEAN if connected else Outcome.SKIPPED))
        assert self._end is not None
        return self._end

    def extra(self, name: str) -> Any:
        sock = self._sock
        if name == "socket":
            return sock
        if name == "server_addr":
            return self.address
        if sock is not None and name == "client_addr":
            return sock.getsockname()
        return None

    def _close(self, end: LayerEnd) -> None:
        self._end = end
        self._queue.clear()
        self._forget()

    def _forget(self) -> None:
        if self._sock is not None:
            if self._host is not None:
                self.listen(self._host, None)
            sock, self._sock = self._sock, None
            if self._host is None or self._host.current:  # (false too if the loop is over)
                anyio.notify_closing(sock)
            sock.close()

    def _socket(self) -> socket.socket:
        if self._sock is None:
            raise TransportError("the UDP socket is closed", operation="read", by="us")
        return self._sock

    def _unreachable(self, error: OSError) -> TransportError:
        if isinstance(error, _UNREACHABLE):
            return TransportError(
                f"{self.address[0]} port {self.address[1]} is unreachable", operation="read", by="peer"
            )
        return TransportError(f"lost the UDP socket to {self.address[0]}: {error}", operation="read")
