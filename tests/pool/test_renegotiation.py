"""Servers that renegotiate TLS 1.2: HTTP/1.1 goes on, in order, whatever was being sent; HTTP/2 forbids it."""

from __future__ import annotations

import select
import socket
import ssl
from array import array
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import anyio
import pytest
from OpenSSL import SSL

from allswell import AllswellError, ConnectionPool
from allswell._config import Timeouts
from allswell._report import ConnectionEnd
from tests.support.certificates import certificates
from tests.support.lag import LAG
from tests.support.peer import PeerConnection, Script, ScriptedPeer, scripted_peer

pytestmark = pytest.mark.anyio

#: More than the sockets take before the server reads.
SIZE = 8 * 1024 * 1024
#: OpenSSL's SSL_OP_NO_SESSION_RESUMPTION_ON_RENEGOTIATION: a resumed session would ask for no certificate.
_NO_RESUMPTION = 1 << 16
PATIENT = Timeouts(total=60)


class Renegotiating:
    """A server's TLS 1.2 by pyOpenSSL (Python's own cannot ask for it), on a blocking socket.

    :ivar asked: how often it has asked for a new handshake, and got one.
    :ivar subject: of the certificate that the client showed, at last.
    """

    def __init__(self, connection: PeerConnection, alpn: bytes, *, ask_client: bool) -> None:
        files = certificates()
        context = SSL.Context(SSL.TLS_SERVER_METHOD)
        context.set_max_proto_version(SSL.TLS1_2_VERSION)
        context.use_certificate_chain_file(str(files.chain))
        context.use_privatekey_file(str(files.key))
        context.load_verify_locations(str(files.ca))
        context.set_session_id(b"renegotiating")
        context.set_options(_NO_RESUMPTION)
        context.set_alpn_select_callback(lambda _, offered: alpn if alpn in offered else SSL.NO_OVERLAPPING_PROTOCOLS)
        connection.raw.settimeout(None)  # (the peer's stop ends it)
        self._tls = SSL.Connection(context, connection.raw)
        self._tls.set_accept_state()
        self._ask_client = ask_client
        self._data = bytearray()
        self._connection = connection
        self._tls.do_handshake()

    def ask(self) -> None:
        """HelloRequest (RFC 5246 §7.4.1.1); the handshake follows while we read."""
        if self._ask_client:
            # As servers do that want a certificate for some of their paths only.
            self._tls.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, lambda *facts: bool(facts[-1]))
        assert self._tls.renegotiate()
        self._tls.do_handshake()

    @property
    def done(self) -> int:
        """Handshakes besides the first."""
        return self._tls.total_renegotiations() - self._tls.renegotiate_pending()

    @property
    def subject(self) -> bool:
        """Whether the client has shown a certificate."""
        return self._tls.get_peer_certificate() is not None

    def read_past(self, mark: bytes) -> bytes:
        """All up to the mark, and with it; ``b""`` at the client's end."""
        while mark not in self._data:
            if not self._more():
                return b""
        end = self._data.index(mark) + len(mark)
        found = bytes(self._data[:end])
        del self._data[:end]
        return found

    def read(self, size: int) -> bytes:
        """So much at least, and what came with it; less at the client's end."""
        while len(self._data) < size and self._more():
            pass
        found = bytes(self._data)
        self._data.clear()
        return found

    def settle(self) -> None:
        """Go through the handshake that was asked for, while the client says nothing else."""
        before = self.done
        self._connection.raw.setblocking(False)
        while True:
            try:
                self._data += self._tls.recv(65536)
            except SSL.WantReadError:
                if self.done > before:
                    break
                select.select([self._connection.raw], [], [])
        self._connection.raw.setblocking(True)

    def say(self, data: bytes) -> None:
        self._tls.sendall(data)

    def _more(self) -> bool:
        try:
            self._data += self._tls.recv(65536)
        except SSL.Error:  # of which the client's close_notify is one
            return False
        return True

    def end(self) -> None:
        """close_notify."""
        with suppress(SSL.Error):  # where a handshake was not over
            self._tls.shutdown()


def server(talk: Callable[[Renegotiating], None], alpn: bytes = b"http/1.1", *, ask_client: bool = False) -> Script:
    def script(connection: PeerConnection) -> None:
        tls = Renegotiating(connection, alpn, ask_client=ask_client)
        talk(tls)
        while tls.read(1):
            pass
        tls.end()

    return script


def pattern(start: int, size: int) -> bytes:
    """A part of a body in which every place tells where it is."""
    return array("Q", range(start // 8, (start + size) // 8)).tobytes()


async def pieces() -> AsyncIterator[bytes]:
    for start in range(0, SIZE, 40_000):
        yield pattern(start, min(40_000, SIZE - start))


async def request(
    peer: ScriptedPeer, ends: list[ConnectionEnd], *, grace: float = 3 * LAG, **settings: Any
) -> tuple[int, bytes]:
    trust = certificates().client_context(version=ssl.TLSVersion.TLSv1_2, with_certificate=True)
    url = f"https://localhost:{peer.port}/"
    small = ((socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * 1024),)
    limits: dict[str, Any] = {"socket_options": small, "grace": grace}
    async with ConnectionPool(ssl_context=trust, on_connection_end=ends.append, **limits) as pool:
        response = await pool.request("POST", url, timeouts=PATIENT, **settings)
        return response.status, await response.read()


@pytest.mark.parametrize("ask_client", [False, True])
@pytest.mark.parametrize("often", [1, 5])
@pytest.mark.parametrize("kind", ["bytes", "iterator"])
async def test_during_an_upload(kind: str, often: int, ask_client: bool) -> None:
    """The server asks when it has read the head, and again and again while it reads the body."""
    received = bytearray()

    def talk(tls: Renegotiating) -> None:
        head = tls.read_past(b"\r\n\r\n")
        assert b"content-length: %d\r\n" % SIZE in head.lower()
        for number in range(1, often + 1):
            tls.ask()
            while tls.done < number and len(received) < SIZE:  # the answer is behind what was under way
                received.extend(tls.read(1))
        assert tls.done == often
        received.extend(tls.read(SIZE - len(received)))
        answer = b"known" if tls.subject else b"unknown"
        tls.say(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(answer), answer))

    ends: list[ConnectionEnd] = []
    with scripted_peer(server(talk, ask_client=ask_client), handshake=False, receive_buffer=64 * 1024) as peer:
        if kind == "bytes":
            status, body = await request(peer, ends, content=pattern(0, SIZE))
        else:
            headers = [(b"Content-Length", str(SIZE).encode())]
            status, body = await request(peer, ends, content=pieces(), headers=headers)
        assert (status, body) == (200, b"known" if ask_client else b"unknown")
        assert bytes(received) == pattern(0, SIZE)
        await peer.ended()
    [end] = ends
    assert end.clean, end
    assert [layer.said for layer in end.layers] == ["", "close_notify", "FIN"]


async def test_before_a_response() -> None:
    def talk(tls: Renegotiating) -> None:
        for _ in range(2):
            tls.read_past(b"\r\n\r\n")
            tls.ask()
            tls.settle()
            tls.say(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    with scripted_peer(server(talk), handshake=False) as peer:
        trust = certificates().client_context(version=ssl.TLSVersion.TLSv1_2)
        async with ConnectionPool(ssl_context=trust) as pool:
            for _ in range(2):
                assert await (await pool.request("GET", f"https://localhost:{peer.port}/")).read() == b"ok"
        await peer.ended()
        assert len(peer.connections) == 1


async def test_server_that_asks_and_goes() -> None:
    """What waits for the handshake to end does not wait for ever."""

    def script(connection: PeerConnection) -> None:
        tls = Renegotiating(connection, b"http/1.1", ask_client=False)
        tls.read_past(b"\r\n\r\n")
        tls.ask()
        connection.close()

    with scripted_peer(script, handshake=False) as peer, pytest.raises(AllswellError), anyio.fail_after(30):
        await request(peer, [], content=pattern(0, SIZE))


async def test_server_that_asks_and_falls_silent() -> None:
    """The write timeout holds: nothing of the request is taken."""

    def script(connection: PeerConnection) -> None:
        tls = Renegotiating(connection, b"http/1.1", ask_client=False)
        tls.read_past(b"\r\n\r\n")
        tls.ask()
        connection.stall()

    with scripted_peer(script, handshake=False) as peer:
        trust = certificates().client_context(version=ssl.TLSVersion.TLSv1_2)
        async with ConnectionPool(ssl_context=trust) as pool:
            with pytest.raises(AllswellError, match="took nothing of the request"), anyio.fail_after(30):
                await pool.request(
                    "POST",
                    f"https://localhost:{peer.port}/",
                    content=pattern(0, SIZE),
                    timeouts=Timeouts(read=None, write=0.5),
                )
        peer.release()


async def test_goodbye_while_it_is_under_way() -> None:
    """OpenSSL says none then, and the report claims none."""

    def script(connection: PeerConnection) -> None:
        tls = Renegotiating(connection, b"http/1.1", ask_client=False)
        tls.read_past(b"\r\n\r\n")
        tls.ask()
        tls.say(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        connection.stall()

    ends: list[ConnectionEnd] = []
    with scripted_peer(script, handshake=False) as peer:
        status, _ = await request(peer, ends, grace=0.5)
        assert status == 200
        peer.release()
    [end] = ends
    assert [(layer.layer, layer.said) for layer in end.layers] == [("h1", ""), ("tls", ""), ("tcp", "FIN")]
    assert not end.clean


async def test_http2_forbids_it() -> None:
    """RFC 9113 §9.2.1."""
    hellos: list[int] = []

    def talk(tls: Renegotiating) -> None:
        assert tls.read_past(b"SM\r\n\r\n").startswith(b"PRI * HTTP/2.0")
        tls.say(b"\0\0\0\x04\0\0\0\0\0")  # SETTINGS
        tls.ask()
        while tls.read(1):
            pass
        hellos.append(tls.done)

    ends: list[ConnectionEnd] = []
    with scripted_peer(server(talk, b"h2"), handshake=False) as peer:
        with pytest.raises(AllswellError, match=r"renegotiation, which HTTP/2 forbids \(RFC 9113 §9\.2\.1\)") as caught:
            await request(peer, ends)
        assert f"localhost:{peer.port}" in str(caught.value)
        assert caught.value.by == "peer"
        await peer.ended()
    assert hellos == [0]
    assert [end.http_version for end in ends] == ["HTTP/2"]
