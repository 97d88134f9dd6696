"""An origin that says what the test tells it to, when it does, in every version.

::

    with told("h2") as origin, origin.pool() as pool:
        response = ...  # pool.request("GET", origin.url)
        origin.head()
        origin.data(b"tick")

The calls are synchronous, so that they may be made while the event loop is held. On the loopback what was sent lies in
the client's socket when the call returns.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

from hyperframe.frame import DataFrame

from allswell import ConnectionPool
from tests.support.certificates import certificates
from tests.support.h2_script import Http2Server, Request, Talk, h2_tls
from tests.support.peer import PeerConnection, scripted_peer
from tests.support.quic_server import QuicServer, ServedConnection

Version = Literal["h1", "h2", "h3"]
VERSIONS: tuple[Version, ...] = ("h1", "h2", "h3")


class Told:
    """What can be said on the newest request.

    :ivar asked: counts the requests whose heads have come.
    :ivar uploaded: counts those whose bodies have come, of the ones that have any.
    :ivar go_on: what it waits for with ``stalls``, before it reads a request's body.
    """

    def __init__(self, version: Version, *, stalls: bool) -> None:
        self.version = version
        self.go_on = threading.Event()
        if not stalls:
            self.go_on.set()
        self.url = ""  # has no name in it, which a thread would look up
        self.asked = threading.Semaphore(0)
        self.uploaded = threading.Semaphore(0)
        self.head: Callable[[], None]
        self.data: Callable[[bytes], None]
        self.end: Callable[[], None]

    def pool(self, **settings: Any) -> ConnectionPool:
        """A pool that speaks the version with it."""
        context = certificates().client_context()
        if self.version == "h1":
            settings.setdefault("http2", False)
        return ConnectionPool(ssl_context=context, http3="only" if self.version == "h3" else False, grace=2, **settings)

    def _h1(self, connection: PeerConnection) -> None:
        def head() -> None:
            connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")

        def data(piece: bytes) -> None:
            connection.send(b"%x\r\n%b\r\n" % (len(piece), piece))

        self.head, self.data, self.end = head, data, lambda: data(b"")
        while request := connection.read_head():
            self.asked.release()
            self.go_on.wait(30)
            if request.startswith(b"POST"):
                connection.read_body(request)
                self.uploaded.release()

    def _h2(self, talk: Talk, request: Request) -> None:
        def data(piece: bytes, *flags: str) -> None:
            talk.send(DataFrame(request.stream, piece, flags=list(flags)))

        self.head = lambda: talk.send(talk.headers(request.stream, [(":status", "200")]))
        self.data, self.end = data, lambda: data(b"", "END_STREAM")
        self.asked.release()
        self.go_on.wait(30)
        if request.headers[":method"] == "POST":
            talk.read_body(request)
            self.uploaded.release()

    def _h3(self, server: QuicServer) -> Callable[[ServedConnection, int, dict[bytes, bytes]], None]:
        def handle(connection: ServedConnection, stream: int, fields: dict[bytes, bytes]) -> None:
            def say(word: Callable[[], None]) -> None:
                def job(_: ServedConnection) -> None:
                    word()
                    connection.flush()

                server.call(job)

            self.head = lambda: say(lambda: connection.head(stream, 200))
            self.data = lambda piece: say(lambda: connection.data(stream, piece))
            self.end = lambda: say(lambda: connection.data(stream, b"", end=True))
            self.asked.release()
            self.go_on.wait(30)
            if fields[b":method"] == b"POST":
                server.on_body = self.uploaded.release

        return handle


@contextmanager
def told(version: Version, *, stalls: bool = False) -> Iterator[Told]:
    """An origin that is told what to say.

    :param stalls: it reads no body of a request before it is told to go on.
    """
    origin = Told(version, stalls=stalls)
    if version == "h3":
        routes: dict[bytes, Any] = {}
        with QuicServer(routes) as server:
            server.routes[b"/"] = origin._h3(server)
            origin.url = f"https://127.0.0.1:{server.port}/"
            yield origin
    elif version == "h2":
        with scripted_peer(Http2Server(origin._h2), tls=h2_tls(), receive_buffer=64 * 1024) as peer:
            origin.url = f"https://127.0.0.1:{peer.port}/"
            yield origin
    else:
        with scripted_peer(origin._h1, tls=True, receive_buffer=64 * 1024) as peer:
            origin.url = f"https://127.0.0.1:{peer.port}/"
            yield origin
