"""A QUIC server that records what clients put on the wire: HTTP/3 and HTTP/0.9 over aioquic, in a thread of its own.

What it saw is in :attr:`QuicServer.seen`, in order, as tuples that begin with a word:
``("request", method, path)``, ``("goaway", id)``, ``("close", frame_type, code)``, ``("reset", stream, code)``,
``("stop", stream, code)``, ``("body", stream, size)`` (a request's, complete), ``("handshake", resumed, early_data)``,
``("priority_update", payload)``.
"""

from __future__ import annotations

import queue
import secrets
import select
import socket
import threading
import traceback as traceback_
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from time import monotonic
from types import TracebackType
from typing import Any, ClassVar, Self

from aioquic._buffer import Buffer
from aioquic.buffer import encode_uint_var
from aioquic.h3.connection import FrameType, H3Connection, encode_frame
from aioquic.h3.events import DatagramReceived, DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection, QuicConnectionState, QuicReceiveContext
from aioquic.quic.events import (
    ConnectionTerminated,
    HandshakeCompleted,
    QuicEvent,
    StopSendingReceived,
    StreamDataReceived,
    StreamReset,
)
from aioquic.quic.packet import QuicPacketType, encode_quic_retry, encode_quic_version_negotiation, pull_quic_header
from aioquic.tls import SessionTicket

from tests.support.certificates import Certificates, certificates

_CLIENTS_CONTROL = 2
_PRIORITY_UPDATE = 0xF0700  # RFC 9218 §7.2
_CID = 8


class _Recording(QuicConnection):
    """aioquic's server side, which notes every CONNECTION_CLOSE as it is on the wire."""

    note: Callable[..., None]

    def _handle_connection_close_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        start = buf.tell()
        code = buf.pull_uint_var()
        buf.seek(start)
        self.note("close", frame_type, code)
        super()._handle_connection_close_frame(context, frame_type, buf)


@dataclass(eq=False)
class ServedConnection:
    """One client's connection, inside the server's thread.

    :ivar silent: whether it sends nothing any more.
    :ivar last_words: our CONNECTION_CLOSE.
    :ivar afterwards: what :meth:`once_delivered` was given.
    """

    #: Ours: the first unidirectional one that a server opens.
    control_stream: ClassVar[int] = 3

    server: QuicServer
    quic: _Recording
    address: Any
    h3: H3Connection | None = None
    silent: bool = False
    last_words: bytes = b""
    afterwards: Callable[[], None] | None = None
    requests: dict[int, dict[bytes, bytes]] = field(default_factory=dict)
    bodies: dict[int, int] = field(default_factory=dict)
    control: bytes = b""
    given_up: set[tuple[str, int, int]] = field(default_factory=set)

    def respond(self, stream: int, status: int, body: bytes = b"", *fields: tuple[bytes, bytes]) -> None:
        """A whole response; nothing, where the client has said STOP_SENDING."""
        known = self.quic._streams.get(stream)
        if known is not None and known.sender._reset_error_code is not None:
            return
        self.head(stream, status, *fields, end=not body)
        if body:
            self.data(stream, body, end=True)

    def head(self, stream: int, status: int, *fields: tuple[bytes, bytes], end: bool = False) -> None:
        """A response's head."""
        assert self.h3 is not None
        self.h3.send_headers(stream, [(b":status", str(status).encode()), *fields], end)

    def data(self, stream: int, data: bytes, *, end: bool = False) -> None:
        """A piece of a response's body."""
        assert self.h3 is not None
        self.h3.send_data(stream, data, end)

    def raw(self, stream: int, data: bytes, *, end: bool = False) -> None:
        """Bytes on a stream, past all of HTTP's rules."""
        self.quic.send_stream_data(stream, data, end)

    def goaway(self, first_refused: int) -> None:
        """GOAWAY (aioquic cannot)."""
        self.raw(self.control_stream, encode_frame(FrameType.GOAWAY, encode_uint_var(first_refused)))

    def flush(self) -> None:
        """Send now what was said so far. (It goes when the handler returns; a close throws away what has not gone.)"""
        for datagram, address in self.quic.datagrams_to_send(monotonic()):
            if self.quic._state is QuicConnectionState.CLOSING:
                self.last_words = datagram
            if not self.silent:
                self.server._sock.sendto(datagram, address)

    def once_delivered(self, action: Callable[[], None]) -> None:
        """Do this when the client has acknowledged all that was said on its streams."""
        self.afterwards = action

    @property
    def undelivered(self) -> list[int]:
        """The client's streams on which something of ours is not acknowledged yet."""
        senders = {number: stream.sender for number, stream in self.quic._streams.items() if not number & 3}
        return [
            number
            for number, sender in senders.items()
            if not sender.is_finished and (sender._buffer_stop or sender._reset_error_code is not None)
        ]


Handler = Callable[[ServedConnection, int, dict[bytes, bytes]], None]


class QuicServer:
    """The server: a context manager.

    :param routes: what to do when the head of a request for a path (without its query) is there.
    :param retry: whether clients must prove their address first (RFC 9000 §8.1.2).
    :param versions: supported; a client that offers none of them gets Version Negotiation.
    :ivar on_body: called when a request's body is complete.
    :ivar answer_close: whether it answers a CONNECTION_CLOSE with its own.
    """

    def __init__(
        self,
        routes: Mapping[bytes, Handler] | None = None,
        *,
        alpn: str = "h3",
        retry: bool = False,
        versions: list[int] | None = None,
        files: Certificates | None = None,
        ask_client: bool = False,
        answer_close: bool = False,
        host: str = "127.0.0.1",
        port: int = 0,
        **options: Any,
    ) -> None:
        files = files or certificates()
        self.seen: list[tuple[Any, ...]] = []
        self.routes: dict[bytes, Handler] = {b"/hello": _hello, b"/bytes": _bytes, b"/echo": _wait, **(routes or {})}
        self.tickets: dict[bytes, SessionTicket] = {}
        self.answer_close = answer_close
        self.on_body: Callable[[], None] = lambda: None
        self.connections: list[ServedConnection] = []
        self._ask_client = ask_client
        self._retry = retry
        self._configuration = QuicConfiguration(is_client=False, alpn_protocols=[alpn], **options)
        if versions is not None:
            self._configuration.supported_versions = versions
        self._configuration.load_cert_chain(files.chain, files.key)
        self._live: list[ServedConnection] = []
        self._by_cid: dict[bytes, ServedConnection] = {}
        self._retried: dict[bytes, bytes] = {}
        self._sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        self._sock.setblocking(False)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self._sock.bind((host, port))
        self.port: int = self._sock.getsockname()[1]
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._others: dict[socket.socket, Callable[[], None]] = {}  # what a subclass reads besides
        self._wake, self._woken = socket.socketpair()
        self._stop = False
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._main, name="quic server", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop = True
        self._wake.send(b"x")
        self._thread.join(30)
        for sock in (self._sock, self._wake, self._woken):
            sock.close()
        if self._failure is not None:
            if error is None:
                raise self._failure
            error.add_note(f"The QUIC server had failed: {''.join(traceback_.format_exception(self._failure))}")

    def call(self, job: Callable[[ServedConnection], Any]) -> Any:
        """Do something to the newest connection, in the server's thread; its result. What it raises is raised here."""
        done: Future[Any] = Future()

        def run() -> None:
            try:
                done.set_result(job(self.connections[-1]))
            except Exception as error:  # noqa: BLE001 - raised by `result`
                done.set_exception(error)

        self._jobs.put(run)
        self._wake.send(b"x")
        return done.result(timeout=120)

    def settle(self) -> None:
        """Block until all that has arrived so far was taken."""
        self.call(lambda _: self._take_all())

    def all(self, word: str) -> list[tuple[Any, ...]]:
        """What was seen that begins with this word, without it."""
        return [entry[1:] for entry in list(self.seen) if entry[0] == word]

    def stop_listening(self) -> None:
        """Close the port: what arrives from now on is answered with ICMP (port unreachable).

        Nobody else can have it: the socket stays, and hears nobody but a port from which nothing comes.
        """
        self._stop = True
        self._wake.send(b"x")
        self._thread.join(30)
        self._sock.connect((self._sock.getsockname()[0], 9))  # discard

    # In the thread

    def _main(self) -> None:
        try:
            while not self._stop:
                self._once()
            self._take_all()
        except BaseException as error:  # noqa: BLE001 - told by __exit__, in the test's thread
            self._failure = error

    def _once(self) -> None:
        timers = [timer for each in self._live if (timer := each.quic.get_timer()) is not None]
        timeout = max(0.0, min(timers) - monotonic()) if timers else None
        ready, _, _ = select.select([self._sock, self._woken, *self._others], [], [], timeout)
        for other in [each for each in ready if each in self._others]:
            self._others[other]()
        if self._woken in ready:
            self._woken.recv(100)
        while not self._jobs.empty():
            self._jobs.get()()
        if self._sock in ready:
            for _ in range(64):
                if not self._take():
                    break
        now = monotonic()
        for each in self._live[:]:
            timer = each.quic.get_timer()
            if timer is not None and now >= timer:
                each.quic.handle_timer(now)
            self._events(each)
            if each.afterwards is not None and not each.undelivered:
                action, each.afterwards = each.afterwards, None
                action()
            each.flush()

    def _take_all(self) -> None:
        while self._take():
            pass

    def _take(self) -> bool:
        """One datagram; whether there was one."""
        try:
            data, address = self._sock.recvfrom(65535)
        except BlockingIOError:
            return False
        self._receive(data, address)
        return True

    def _receive(self, data: bytes, address: Any) -> None:
        try:
            header = pull_quic_header(Buffer(data=data), host_cid_length=_CID)
        except ValueError:
            return
        connection = self._by_cid.get(header.destination_cid)
        if connection is None:
            if header.version is not None and header.version not in self._configuration.supported_versions:
                self._sock.sendto(
                    encode_quic_version_negotiation(
                        source_cid=header.destination_cid,
                        destination_cid=header.source_cid,
                        supported_versions=self._configuration.supported_versions,
                    ),
                    address,
                )
                return
            if header.packet_type != QuicPacketType.INITIAL or len(data) < 1200:
                return
            connection = self._accept(header, address)
            if connection is None:
                return
        if connection.last_words and not connection.silent:
            self._sock.sendto(connection.last_words, address)  # RFC 9000 §10.2.1 (aioquic is silent then)
        connection.quic.receive_datagram(data, address, monotonic())
        if self.answer_close and connection.quic._state is QuicConnectionState.DRAINING:
            self._answer(connection, address)
        self._events(connection)

    def _answer(self, connection: ServedConnection, address: Any) -> None:
        quic = connection.quic
        quic._state, event, quic._close_event = QuicConnectionState.CONNECTED, quic._close_event, None
        quic.close(error_code=0x100)
        for datagram, _ in quic.datagrams_to_send(monotonic()):
            self._sock.sendto(datagram, address)
        quic._state, quic._close_event = QuicConnectionState.DRAINING, event

    def _accept(self, header: Any, address: Any) -> ServedConnection | None:
        original, retried = header.destination_cid, None
        if self._retry:
            if not header.token:
                source, token = secrets.token_bytes(_CID), secrets.token_bytes(16)
                self._retried[token] = header.destination_cid
                self._sock.sendto(
                    encode_quic_retry(
                        version=header.version,
                        source_cid=source,
                        destination_cid=header.source_cid,
                        original_destination_cid=header.destination_cid,
                        retry_token=token,
                    ),
                    address,
                )
                return None
            original, retried = self._retried[header.token], header.destination_cid
        self.seen.append(("initial", header.version, bool(header.token)))
        quic = _Recording(
            configuration=self._configuration,
            original_destination_connection_id=original,
            retry_source_connection_id=retried,
            session_ticket_fetcher=lambda label: self.tickets.pop(label, None),
            session_ticket_handler=lambda ticket: self.tickets.__setitem__(ticket.ticket, ticket),
        )
        quic.note = lambda *entry: self.seen.append(entry)
        connection = ServedConnection(self, quic, address)
        self._by_cid[header.destination_cid] = connection
        self._by_cid[quic.host_cid] = connection
        self.connections.append(connection)
        self._live.append(connection)
        if self._ask_client:
            self._initialize_asking(quic)
        return connection

    def _initialize_asking(self, quic: QuicConnection) -> None:
        initialize = quic._initialize

        def asking(peer_cid: bytes) -> None:
            initialize(peer_cid)
            quic.tls._request_client_certificate = True

        quic._initialize = asking  # type: ignore[method-assign]  # aioquic has it for tests of its own only

    def _events(self, connection: ServedConnection) -> None:
        quic = connection.quic
        while (event := quic.next_event()) is not None:
            self._on_event(connection, event)
        for cid in quic._host_cids:
            self._by_cid[cid.cid] = connection

    def _on_event(self, connection: ServedConnection, event: QuicEvent) -> None:
        quic, note = connection.quic, self.seen.append
        if isinstance(event, ConnectionTerminated) and connection in self._live:
            self._live.remove(connection)
        if isinstance(event, HandshakeCompleted):
            note(("handshake", event.session_resumed, event.early_data_accepted))
            if self._ask_client:
                note(("certificate", quic.tls._peer_certificate))
        if connection.h3 is None and quic._cryptos and self._configuration.alpn_protocols == ["h3"]:
            connection.h3 = self._speak(quic)
        if isinstance(event, StreamReset | StopSendingReceived):
            word = "reset" if isinstance(event, StreamReset) else "stop"
            said = (word, event.stream_id, event.error_code)
            if said not in connection.given_up:  # it is said again where its acknowledgement is late
                connection.given_up.add(said)
                note(said)
        elif isinstance(event, StreamDataReceived):
            if event.stream_id == _CLIENTS_CONTROL:
                self._on_control(connection, event.data)
            if connection.h3 is None:
                self._on_http09(connection, event)
        if connection.h3 is not None:
            for http in connection.h3.handle_event(event):
                self._on_http(connection, http)

    def _speak(self, quic: QuicConnection) -> H3Connection:
        return H3Connection(quic)

    def _on_control(self, connection: ServedConnection, data: bytes) -> None:
        if not connection.control:
            data = data[1:]  # the stream's type, in a byte
            connection.control = b"-"
        connection.control += data
        buf = Buffer(data=connection.control[1:])
        while not buf.eof():
            start = buf.tell()
            kind, size = buf.pull_uint_var(), buf.pull_uint_var()
            payload = buf.pull_bytes(size)
            if kind == FrameType.GOAWAY:
                self.seen.append(("goaway", Buffer(data=payload).pull_uint_var()))
            elif kind == FrameType.SETTINGS:
                self.seen.append(("settings", payload))
            elif kind == _PRIORITY_UPDATE:
                self.seen.append(("priority_update", payload))
            connection.control = b"-" + connection.control[1:][start + (buf.tell() - start) :]
            buf = Buffer(data=connection.control[1:])

    def _on_http(self, connection: ServedConnection, event: object) -> None:
        if isinstance(event, DatagramReceived):
            self.seen.append(("datagram", event.stream_id, event.data))
        if not isinstance(event, (HeadersReceived, DataReceived)):
            return
        stream = event.stream_id
        if isinstance(event, HeadersReceived) and stream not in connection.requests:
            fields = connection.requests[stream] = dict(event.headers)
            path = fields.get(b":path", b"").split(b"?")[0]
            self.seen.append(("request", fields[b":method"].decode(), path.decode()))
            connection.bodies[stream] = 0
            handler = self.routes.get(b"/" + path.split(b"/")[1] if path.count(b"/") > 1 else path, _not_found)
            handler(connection, stream, fields)
        elif isinstance(event, HeadersReceived):
            self.seen.append(("trailers", stream, event.headers))
        else:
            connection.bodies[stream] += len(event.data)
        if event.stream_ended and stream in connection.bodies:
            size = connection.bodies.pop(stream)
            fields = connection.requests.pop(stream)
            if size or fields[b":path"] == b"/echo":
                self.seen.append(("body", stream, size))
                self.on_body()
            if fields.get(b":path") == b"/echo":
                connection.respond(stream, 200, str(size).encode())

    def _on_http09(self, connection: ServedConnection, event: StreamDataReceived) -> None:
        path = event.data.split(b" ", 1)[1].strip()
        self.seen.append(("request", "GET", path.decode()))
        size = int(path.rsplit(b"/", 1)[1]) if path.startswith(b"/bytes/") else 0
        connection.raw(event.stream_id, b"x" * size if size else b"hello", end=True)


def hints_and_trailers(connection: ServedConnection, stream: int, fields: dict[bytes, bytes]) -> None:
    """A route for tests: 103, a body, and a trailer section."""
    connection.head(stream, 103, (b"link", b"</a.css>"))
    connection.head(stream, 200)
    connection.data(stream, b"body")
    assert connection.h3 is not None
    connection.h3.send_headers(stream, [(b"checksum", b"1")], True)


def _hello(connection: ServedConnection, stream: int, fields: dict[bytes, bytes]) -> None:
    connection.respond(stream, 200, b"hello", (b"content-length", b"5"))


def _bytes(connection: ServedConnection, stream: int, fields: dict[bytes, bytes]) -> None:
    size = int(fields[b":path"].rsplit(b"/", 1)[1])
    connection.respond(stream, 200, b"x" * size)


def _wait(connection: ServedConnection, stream: int, fields: dict[bytes, bytes]) -> None:
    """Answer when the request is complete."""


def _not_found(connection: ServedConnection, stream: int, fields: dict[bytes, bytes]) -> None:
    connection.respond(stream, 404)
