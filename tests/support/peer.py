"""Scripted peers: servers for what no real server can be made to do, and witnesses of how a client ends.

A peer runs in threads of its own, with plain blocking sockets, so it depends on nothing under test. Each connection
is handed to a script, a callable that takes a :class:`PeerConnection`; ready ones are in ``tests.support.scripts``::

    with scripted_peer(answers(), tls=True) as peer:
        ...  # a client talks to peer.url and closes
        await peer.ended()
        assert peer.connections[0].saw == ["close_notify", "FIN"]

When the script returns, the connection is ended politely: it reads until the client has ended, answers, and looks
whether a RST follows. What is asserted is only known once it ended: wait for that before the block is left.
A script's exception is raised again in the test, save those that say that the client or the test has left.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import anyio.to_thread

from tests.support.certificates import certificates
from tests.support.peer_connection import ClientGoneError, PeerConnection, PeerStoppedError, Seen

__all__ = ["ClientGoneError", "PeerConnection", "Script", "ScriptedPeer", "Seen", "scripted_peer"]

Script = Callable[[PeerConnection], None]


class ScriptedPeer:
    """A listening socket, its accepting thread, and a thread per connection. Use :func:`scripted_peer`.

    :ivar connections: all accepted so far, in order.
    :ivar host: the address (not a name); ``""`` for a Unix domain socket.
    :ivar port: the port; 0 for a Unix domain socket.
    """

    def __init__(
        self, script: Script, listener: socket.socket, tls: ssl.SSLContext | None, handshake: bool, patience: float
    ) -> None:
        self.connections: list[PeerConnection] = []
        self.host: str = ""
        self.port: int = 0
        if listener.family != socket.AF_UNIX:
            self.host, self.port = listener.getsockname()[:2]
        self._script = script
        self._listener = listener
        self._tls = tls
        self._handshake = handshake
        self._patience = patience
        self._released = threading.Event()
        self._changed = threading.Condition()
        self._stopping = False
        self._failures: list[BaseException] = []
        self._threads = [threading.Thread(target=self._accept, name="peer-accept", daemon=True)]
        self._threads[0].start()

    @property
    def url(self) -> str:
        """``https://localhost:PORT``: a name, so that certificates and SNI take part; the address for plain TCP."""
        if self._tls is not None:
            return f"https://localhost:{self.port}"
        return f"http://[{self.host}]:{self.port}" if ":" in self.host else f"http://{self.host}:{self.port}"

    def release(self) -> None:
        """Let every stalled script go on, now and from now on."""
        self._released.set()

    def wait_accepted(self, connections: int = 1, timeout: float = 30.0) -> None:
        """Block until that many connections were accepted.

        :raises TimeoutError: if they were not in time.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: len(self.connections) >= connections, timeout):
                raise TimeoutError(f"accepted {len(self.connections)} of {connections} connections in {timeout} s")

    def wait_ended(self, timeout: float = 30.0, connections: int = 1) -> None:
        """Block until at least that many connections were accepted and all of them have ended.

        It blocks the event loop too: where the client still has something to do, use :meth:`ended`.

        :raises TimeoutError: saying what each open connection has seen.
        """
        deadline = time.monotonic() + timeout
        self.wait_accepted(connections, timeout)
        for connection in list(self.connections):
            if not connection.ended.wait(max(0.0, deadline - time.monotonic())):
                state = [(each.index, each.saw, each.ended.is_set()) for each in self.connections]
                raise TimeoutError(f"not ended within {timeout} s: (connection, saw, ended) = {state}")

    async def ended(self, timeout: float = 30.0, connections: int = 1) -> None:
        """As :meth:`wait_ended`, with the event loop running on."""
        await anyio.to_thread.run_sync(self.wait_ended, timeout, connections)

    def _accept(self) -> None:
        while not self._stopping:
            try:
                raw, _ = self._listener.accept()
            except OSError:
                if self._stopping:
                    return
                raise
            connection = PeerConnection(raw, len(self.connections), self._tls, self._released, self._patience)
            thread = threading.Thread(target=self._serve, args=[connection], name="peer-connection", daemon=True)
            with self._changed:
                self.connections.append(connection)
                self._threads.append(thread)
                self._changed.notify_all()
                if self._stopping:
                    connection.stop()
            thread.start()

    def _serve(self, connection: PeerConnection) -> None:
        try:
            try:
                if self._handshake:
                    connection.handshake()
                self._script(connection)
            except ClientGoneError:
                pass  # what it saw is recorded; only the end is left to do
            connection.finish()
        except PeerStoppedError:
            pass
        except BaseException as error:  # noqa: BLE001  raised again in the test by stop()
            if not connection.stopping:
                self._failures.append(error)
        finally:
            connection.close()
            connection.ended.set()

    def stop(self) -> None:
        """End everything at once and join the threads.

        :raises BaseException: the first failure of a script.
        """
        with self._changed:
            self._stopping = True
            for connection in self.connections:
                connection.stop()
        self._released.set()
        with suppress(OSError):  # it wakes accept() up
            self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(self._patience)
        self._listener.close()
        stuck = [thread.name for thread in self._threads if thread.is_alive()]
        if self._failures:
            raise self._failures[0]
        if stuck:
            raise RuntimeError(f"threads that would not end: {stuck}")


@contextmanager
def scripted_peer(
    script: Script,
    *,
    tls: ssl.SSLContext | bool = False,
    handshake: bool = True,
    host: str = "127.0.0.1",
    port: int = 0,
    unix_path: Path | None = None,
    receive_buffer: int | None = None,
    send_buffer: int | None = None,
    backlog: int = 1024,
    patience: float = 120.0,
) -> Iterator[ScriptedPeer]:
    """A peer that runs ``script`` on every connection, until the block is left.

    :param tls: ``True`` for the throw-away certificate and ALPN ``http/1.1``, or a context of your own
        (``certificates().server_context(version=…, alpn=…)``).
    :param handshake: ``False`` leaves TLS's handshake to the script (or undone).
    :param port: one of the test's choice, where it is free; by default, any.
    :param unix_path: listen there instead of on ``host``.
    :param receive_buffer: SO_RCVBUF in bytes, set before the connection exists, so that TCP's window obeys it.
    :param send_buffer: SO_SNDBUF in bytes.
    :param patience: seconds any single wait of a script may take.
    """
    context = certificates().server_context() if tls is True else tls or None
    family = socket.AF_UNIX if unix_path else socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if receive_buffer is not None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        if send_buffer is not None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        listener.bind(str(unix_path) if unix_path else (host, port))
        listener.listen(backlog)
    except BaseException:
        listener.close()
        raise
    peer = ScriptedPeer(script, listener, context, handshake, patience)
    try:
        yield peer
    finally:
        peer.stop()
