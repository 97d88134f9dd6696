"""Each assertion can fail, and says why: with clients that end badly, and with one that is made to."""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hpack import Encoder
from hyperframe.frame import GoAwayFrame, HeadersFrame, SettingsFrame

from allswell.testing import (
    CloseNotify,
    Connected,
    ConnectionClose,
    Ended,
    Fin,
    GoAway,
    Origin,
    ResponseSent,
    Rst,
    Said,
    Vanished,
)
from allswell.testing._http2 import PREFACE
from tests.testing.clients import CLIENTS, Get, by_curl, by_httpx2


def why(origin: Origin) -> str:
    """Why the client did not end gracefully."""
    with pytest.raises(AssertionError, match=r"^not ended gracefully:") as raised:
        origin.assert_ended_gracefully(timeout=30)
    return str(raised.value)


def by_hand(origin: Origin, alpn: str = "http/1.1") -> ssl.SSLSocket:
    """A connection that got one response over HTTP/1.1."""
    context = origin.client_context()
    context.set_alpn_protocols([alpn])
    sock = socket.create_connection(("127.0.0.1", origin.port), 30)
    tls = context.wrap_socket(sock, server_hostname="localhost")
    tls.sendall(b"GET /hello HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert tls.recv(1000).startswith(b"HTTP/1.1 200")
    return tls


# Other clients


@pytest.mark.parametrize("get", CLIENTS, ids=lambda each: each.__name__)
def test_what_other_clients_do(get: Get) -> None:
    """None of them waits for the origin's goodbye, so its kernel answers that by RST."""
    with Origin(versions=["h1"]) as origin:
        get(origin, "/hello")
        told = why(origin)
        assert re.search(r"connection 1: RST(?: after FIN|, and no FIN)", told)
        assert "← GET /hello [1]" in told  # the waterfall
        assert "→ 200 [1]" in told
        with pytest.raises(AssertionError, match=r"something was reset:\n  connection 1: RST"):
            origin.assert_no_reset()
        origin.assert_executed_once("GET /hello")
        get(origin, "/hello")
        with pytest.raises(AssertionError, match=r"not executed once:\n  GET /hello was executed 2 times(.|\n)*█"):
            origin.assert_executed_once("GET /hello")


@pytest.mark.parametrize("get", CLIENTS, ids=lambda each: each.__name__)
def test_close_notify_of_other_clients(get: Get) -> None:
    """curl says it; httpx2 and aiohttp don't."""
    with Origin(versions=["h1"]) as origin:
        get(origin, "/hello")
        told = why(origin)
        assert bool(origin.record.of(CloseNotify)) == (get is by_curl)
        if get is not by_curl:
            assert "connection 1: FIN without close_notify (RFC 8446, section 6.1)" in told


def test_goaway_of_httpx2() -> None:
    with Origin(versions=["h2"]) as origin:
        by_httpx2(origin, "/hello")
        assert "connection 1: no GOAWAY (RFC 9113, section 6.8)" in why(origin)
        assert not origin.record.of(GoAway)


# A client made by hand: one fault at a time


def test_a_good_end_by_hand() -> None:
    """The measure: what the others here leave out is all there is to it."""
    with Origin() as origin:
        with by_hand(origin) as tls:
            tls.unwrap()
        origin.assert_ended_gracefully(timeout=30)
        origin.assert_no_reset()


def test_still_open() -> None:
    with Origin() as origin, by_hand(origin):
        with pytest.raises(AssertionError, match="connection 1: it is still open"):
            origin.assert_ended_gracefully(timeout=0.1)
        origin.assert_no_reset()


def test_no_connection_at_all() -> None:
    """Nothing to judge is not a good end."""
    with Origin() as origin:
        assert "there is no connection to judge" in why(origin)
        with socket.create_connection(("127.0.0.1", origin.port)):  # of a race to connect
            pass
        origin.wait_ended(timeout=30)
        assert "there is no connection to judge" in why(origin)


def test_fin_without_close_notify() -> None:
    with Origin() as origin, by_hand(origin) as tls:
        with socket.socket(fileno=socket.dup(tls.fileno())) as below:
            below.settimeout(30)
            below.shutdown(socket.SHUT_WR)
            while below.recv(1000):
                pass
            told = why(origin)
        assert "FIN without close_notify" in told
        assert "RST" not in told


def test_rst_without_fin() -> None:
    with Origin() as origin:
        tls = by_hand(origin)
        tls.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        tls.close()
        told = why(origin)
        assert "connection 1: RST, and no FIN" in told
        assert [type(each) for each in origin.record.events if isinstance(each, Fin | Rst | Ended)] == [Rst, Ended]


def test_cut_exchange() -> None:
    with Origin() as origin:
        with by_hand(origin) as tls:
            origin.stall()
            tls.sendall(b"GET /later HTTP/1.1\r\nHost: localhost\r\n\r\n")
            while not tls.recv(1000).endswith(b"o"):  # half of "ok"
                pass
            tls.unwrap()
        assert "connection 1: it was ended while GET /later was under way" in why(origin)


def test_tls_that_fails() -> None:
    """A client that does not trust the CA: its alert is told in OpenSSL's words."""
    with Origin() as origin:
        with socket.create_connection(("127.0.0.1", origin.port), 30) as sock, pytest.raises(ssl.SSLError):
            ssl.create_default_context().wrap_socket(sock, server_hostname="localhost")
        assert "TLS failed: TLSV1_ALERT_UNKNOWN_CA" in why(origin)


def test_a_protocol_that_is_broken() -> None:
    with Origin() as origin:
        with by_hand(origin) as tls:
            tls.unwrap()
        with by_hand(origin) as tls:
            tls.sendall(b"nonsense\r\n\r\n")
            origin.wait_ended(2, timeout=30)
        assert "connection 2: protocol violated" in why(origin)  # the origin cut it, but for that


@pytest.mark.parametrize("start", [b"GET / HT", b"GET / HTTP/1.1\r\nHost: localhost\r\n"])
def test_the_start_of_a_request(start: bytes) -> None:
    with Origin() as origin:
        with by_hand(origin) as tls:
            tls.sendall(start)
            tls.unwrap()
        assert "the connection ended in the middle of a request's head" in why(origin)


def by_hand_over_http2(origin: Origin, *frames: bytes) -> ssl.SSLSocket:
    """A connection that got one response over HTTP/2, and then said these."""
    context = origin.client_context()
    context.set_alpn_protocols(["h2"])
    tls = context.wrap_socket(socket.create_connection(("127.0.0.1", origin.port), 30), server_hostname="localhost")
    tls.sendall(PREFACE + SettingsFrame(0).serialize() + HeadersFrame(1, GET, flags=WHOLE).serialize())
    said = b""
    while b"ok" not in said:
        said += tls.recv(1000)
    tls.sendall(b"".join(frames))
    return tls


GET = Encoder().encode([(":method", "GET"), (":scheme", "https"), (":authority", "localhost"), (":path", "/")])
WHOLE = ["END_HEADERS", "END_STREAM"]


def close_both(tls: ssl.SSLSocket) -> None:
    """close_notify, FIN, and all that the origin says."""
    with tls.unwrap() as sock:
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(1000):
            pass


@pytest.mark.parametrize(
    ("last", "what"),
    [
        (HeadersFrame(3, GET, flags=WHOLE).serialize()[:11], "a frame"),
        (HeadersFrame(3, GET).serialize(), "a header section"),
    ],
)
def test_the_start_of_a_frame(last: bytes, what: str) -> None:
    with Origin() as origin:
        close_both(by_hand_over_http2(origin, GoAwayFrame(0).serialize(), last))
        assert f"the connection ended in the middle of {what}" in why(origin)


def test_goaway_with_an_error() -> None:
    with Origin() as origin:
        close_both(by_hand_over_http2(origin, GoAwayFrame(0, error_code=1).serialize()))
        assert "connection 1: GOAWAY with error 0x1" in why(origin)
        with pytest.raises(AssertionError, match=r"something was reset:\n  connection 1: GOAWAY 0x1"):
            origin.assert_no_reset()


def test_a_goaway_of_the_origin_that_comes_too_late() -> None:
    """Nothing of HTTP is said behind close_notify. And it would be no excuse."""
    with Origin() as origin:
        with by_hand_over_http2(origin).unwrap() as sock:
            origin.wait_seen(CloseNotify, timeout=30)
            origin.goaway()
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(1000):
                pass
        assert "no GOAWAY (RFC 9113, section 6.8)" in why(origin)
        assert [event.word for event in origin.record.of(Said)] == ["close_notify", "FIN"]


def by_aioquic(origin: Origin, end: Callable[[Any], None], *, idle_timeout: float = 60.0) -> None:
    """aioquic's own client gets one response, and then does as it is told."""
    from aioquic.asyncio.client import connect
    from aioquic.asyncio.protocol import QuicConnectionProtocol
    from aioquic.h3.connection import H3_ALPN, H3Connection
    from aioquic.quic.configuration import QuicConfiguration

    class Deaf(QuicConnectionProtocol):
        def quic_event_received(self, event: object) -> None:
            """It need not hear the response."""

    async def get() -> None:
        configuration = QuicConfiguration(is_client=True, alpn_protocols=H3_ALPN, idle_timeout=idle_timeout)
        configuration.load_verify_locations(str(origin.ca_file))
        async with connect("localhost", origin.port, configuration=configuration, create_protocol=Deaf) as protocol:
            h3 = H3Connection(protocol._quic)
            fields = [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"localhost"), (b":path", b"/")]
            h3.send_headers(0, fields, end_stream=True)
            protocol.transmit()
            await origin.seen(ResponseSent, timeout=30)
            end(protocol)
            protocol.transmit()
            await origin.ended(timeout=30)

    asyncio.run(get())


@pytest.mark.parametrize(
    ("code", "frame_type", "fault"),
    [(0x100, None, ""), (0, 0, "0x1c 0x0"), (0x102, None, "0x1d 0x102")],
    ids=["H3_NO_ERROR", "NO_ERROR of QUIC", "H3_INTERNAL_ERROR"],
)
def test_close_of_quic(code: int, frame_type: int | None, fault: str) -> None:
    def end(protocol: Any) -> None:
        protocol._quic.close(error_code=code, frame_type=frame_type, reason_phrase="that's all")

    with Origin(versions=["h3"]) as origin:
        by_aioquic(origin, end)
        [close] = origin.record.of(ConnectionClose)
        assert (close.code, close.application, close.reason) == (code, frame_type is None, "that's all")
        if not fault:
            origin.assert_ended_gracefully()
            origin.assert_no_reset()
            return
        assert f"CONNECTION_CLOSE {fault} (that's all), and not H3_NO_ERROR" in why(origin)
        if code:
            with pytest.raises(AssertionError, match="something was reset"):
                origin.assert_no_reset()


def test_the_start_of_a_request_over_quic() -> None:
    def end(protocol: Any) -> None:
        protocol._quic.send_stream_data(4, b"\x01\x10\x00")  # HEADERS of 16 bytes, and one of them
        protocol.transmit()
        protocol._quic.close(error_code=0x100)

    with Origin(versions=["h3"]) as origin:
        by_aioquic(origin, end)
        assert "the connection ended in the middle of a request's head" in why(origin)


def test_a_quic_client_that_vanishes() -> None:
    def fall_silent(protocol: Any) -> None:
        protocol._transport.sendto = lambda *datagram: None

    with Origin(versions=["h3"]) as origin:
        by_aioquic(origin, fall_silent, idle_timeout=3.0)
        assert len(origin.record.of(Vanished)) == 1
        assert "connection 1: silent until the idle timeout" in why(origin)


def test_what_the_origin_cut_is_not_held_against_the_client() -> None:
    with Origin(versions=["h1"]) as origin:
        with by_hand(origin):
            origin.reset()
        with by_hand(origin) as tls:
            tls.unwrap()
        origin.wait_ended(2)
        origin.assert_ended_gracefully()


def test_the_waterfall_of_no_connection() -> None:
    with Origin() as origin:
        assert str(origin.record) == "no connection came"
        assert origin.record.of(Connected) == []
