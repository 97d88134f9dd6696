"""Connected sockets: TCP to a host, and Unix domain."""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress

import anyio

from allswell._addresses import AllowAddress, SocketAddress
from allswell._config import SocketOption
from allswell._dial.addresses import connect_any, words
from allswell._dial.lookups import Address, Resolve
from allswell._errors import ConnectFailed

#: With these errors ``connect`` has begun. (On Linux EWOULDBLOCK is EAGAIN: nothing has begun. On Windows they differ.)
_UNDER_WAY = {errno.EINPROGRESS, errno.EWOULDBLOCK} - {errno.EAGAIN}
#: How many seconds pass before a Unix socket with a full backlog is tried again: at first, and at most.
_BACKLOG_DELAY, _BACKLOG_DELAY_MAX = 0.001, 0.064
#: From linux/in.h; the socket module names it since Python 3.12.
_IP_BIND_ADDRESS_NO_PORT = 24


async def connect_tcp(
    host: str,
    port: int,
    *,
    ask: Resolve,
    local_address: str | None = None,
    options: Sequence[SocketOption] = (),
    hints: Sequence[str] = (),
    allow: AllowAddress | None = None,
    around: Callable[[Address], AbstractContextManager[object]] = nullcontext,
) -> socket.socket:
    """A connected, non-blocking TCP socket to one of the host's addresses. Parameters as for :func:`connect_any`.

    :param around: makes a context in which one address is connected to.
    :raises ConnectFailed: if none works. It names the host, and each address that was tried with its error.
    """

    async def attempt(address: Address) -> socket.socket:
        with around(address):
            return await _connect(*address, local_address, options)

    return await connect_any(
        host, port, attempt, socket.socket.close, ask=ask, local_address=local_address, hints=hints, allow=allow
    )


async def connect_unix(path: str, *, options: Sequence[SocketOption] = ()) -> socket.socket:
    """A connected, non-blocking Unix domain socket.

    :raises ConnectFailed: if that fails. It names the path.
    """
    try:
        if not hasattr(socket, "AF_UNIX"):  # Windows
            raise OSError(errno.EAFNOSUPPORT, "Python has no Unix sockets on this system")
        return await _connect(socket.AF_UNIX, path, None, options)
    except OSError as error:
        raise ConnectFailed(f"cannot connect to the Unix socket {path}: {words(error)}", phase="tcp") from error


async def _connect(
    family: int, sockaddr: SocketAddress | str, local_address: str | None, options: Sequence[SocketOption]
) -> socket.socket:
    internet = family in (socket.AF_INET, socket.AF_INET6)
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        if internet:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for option in options:
            sock.setsockopt(*option)
        if local_address is not None:
            if sys.platform == "linux":
                # connect() chooses the port. It knows both ends, so connections to different servers may share a port.
                with suppress(OSError):  # kernels before 4.2
                    sock.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
            sock.bind((local_address, 0))
        code = sock.connect_ex(sockaddr)
        delay = _BACKLOG_DELAY
        while code == errno.EAGAIN and not internet:  # the backlog is full, and nothing tells when it has room
            await anyio.sleep(delay)
            delay = min(2 * delay, _BACKLOG_DELAY_MAX)
            code = sock.connect_ex(sockaddr)
        if code in _UNDER_WAY:
            await anyio.wait_writable(sock)
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, _told(code))
    except BaseException:
        sock.close()
        raise
    return sock


def _told(code: int) -> str:
    # (The C library of Windows has no words for the errors of its sockets; the socket module has.)
    known: dict[int, str] = getattr(socket, "errorTab", {})
    return known.get(code) or os.strerror(code)
