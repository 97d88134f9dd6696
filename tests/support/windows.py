"""Runs a program without what Windows lacks: ``python -m tests.support.windows MODULE [ARGUMENT ...]``.

No Unix sockets, no ancillary data, no ``poll``, no signals but the few, no ``fork``; and an event loop like asyncio's
default there (the proactor's), which watches no sockets and takes no signal handlers. What the standard library itself
needs of them on this machine, it has imported before.
"""

from __future__ import annotations

import asyncio
import os
import runpy
import select
import selectors
import signal
import socket
import ssl
import sys
from typing import Any, NoReturn

_ABSENT: dict[Any, tuple[str, ...]] = {
    socket: (
        *("AF_NETLINK", "AF_PACKET", "AF_UNIX", "CMSG_LEN", "CMSG_SPACE", "MSG_DONTWAIT", "MSG_NOSIGNAL", "SCM_RIGHTS"),
        *("SO_BINDTODEVICE", "SO_REUSEPORT", "recv_fds", "send_fds"),
    ),
    signal: ("SIGALRM", "SIGHUP", "SIGPIPE", "SIGUSR1", "SIGUSR2", "pthread_kill", "setitimer", "sigwait"),
    select: ("PIPE_BUF", "poll"),
    os: (
        *("O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK", "fork", "getuid", "memfd_create", "pipe2", "register_at_fork"),
        *("sendfile", "uname"),
    ),
}
_NO_MODULES = ("fcntl", "grp", "pty", "pwd", "readline", "resource", "syslog", "termios", "tty")


def _refuse(*_: object) -> NoReturn:
    raise NotImplementedError


def _no_such_method(_: object) -> NoReturn:
    raise AttributeError


def take_away() -> None:
    """Do it, in this process, for good."""
    import anyio._backends._asyncio  # which asks for the platform too, and has no other way here
    import httpx2
    import trio
    import truststore

    assert anyio._backends._asyncio is not None
    assert httpx2 is not None
    assert trio is not None
    assert truststore is not None
    asyncio.new_event_loop().close()  # its kind is chosen by the platform, the first time
    pair, unix = socket.socketpair, socket.AF_UNIX
    socket.socketpair = lambda *_: pair(unix)  # made of TCP there
    ssl.enum_certificates = lambda _: []  # type: ignore[attr-defined]
    selectors.DefaultSelector = selectors.SelectSelector  # type: ignore[misc, assignment]
    for module, names in _ABSENT.items():
        for name in names:
            if hasattr(module, name):
                delattr(module, name)
    for name in ("recvmsg", "recvmsg_into", "sendmsg", "sendmsg_afalg"):
        setattr(socket.socket, name, property(_no_such_method))
    for name in _NO_MODULES:
        sys.modules[name] = None  # type: ignore[assignment]  # so that it cannot be imported
    for name in ("add_reader", "remove_reader", "add_writer", "remove_writer", "add_signal_handler"):
        setattr(asyncio.SelectorEventLoop, name, _refuse)
    sys.platform = "win32"


if __name__ == "__main__":
    take_away()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
