"""The scripted peer sees what a client does, each ending told apart from every other."""

from __future__ import annotations

import socket
import ssl
import threading
from pathlib import Path

import pytest
import trustme

from tests.support import certificates as certs
from tests.support.certificates import certificates
from tests.support.peer import PeerConnection, scripted_peer
from tests.support.plain_client import GET, plain, receive, reset, secure
from tests.support.scripts import (
    Ending,
    answers,
    close_delimited,
    continues,
    half_response,
    huge,
    never_ends,
    refuses_upload,
    response,
    silent,
)

VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]
ANSWER = response(b"/hello")


def test_plain_fin() -> None:
    with scripted_peer(answers()) as peer:
        with plain(peer) as client:
            client.sendall(GET)
            assert receive(client, len(ANSWER)) == ANSWER
        peer.wait_ended()
        [connection] = peer.connections
        assert connection.saw == ["FIN"]
        assert connection.requests == [GET]
        assert connection.received == len(GET)


def test_plain_rst() -> None:
    with scripted_peer(answers()) as peer:
        with plain(peer) as client:
            client.sendall(GET)
            receive(client, len(ANSWER))
            reset(client)
        peer.wait_ended()
        assert peer.connections[0].saw == ["RST"]


@pytest.mark.parametrize("version", VERSIONS)
def test_close_notify_then_fin(version: ssl.TLSVersion) -> None:
    with scripted_peer(answers(), tls=True) as peer:
        with secure(peer, version) as client:
            client.sendall(GET)
            assert receive(client, len(ANSWER)) == ANSWER
            client.unwrap().close()  # waits for the peer's close_notify
        peer.wait_ended()
        [connection] = peer.connections
        assert connection.saw == ["close_notify", "FIN"]
        assert connection.selected_alpn == "http/1.1"
        assert connection.when("data") < connection.when("close_notify") < connection.when("FIN")
        with pytest.raises(LookupError):
            connection.when("RST")


def test_fin_without_close_notify_and_gone() -> None:
    """The commonest bad end: the socket is closed outright, and its kernel answers our goodbye by RST."""
    with scripted_peer(answers(), tls=True) as peer:
        with secure(peer, ssl.TLSVersion.TLSv1_2) as client:
            client.sendall(GET)
            receive(client, len(ANSWER))
        peer.wait_ended()
        assert peer.connections[0].saw == ["FIN", "RST"]


def test_half_closed_without_close_notify() -> None:
    with scripted_peer(answers(), tls=True) as peer:
        with secure(peer) as client:
            client.sendall(GET)
            receive(client, len(ANSWER))
            client.shutdown(socket.SHUT_WR)
            while client.recv(1000):
                pass
            peer.wait_ended()
        assert peer.connections[0].saw == ["FIN"]


def test_unread_tickets_reset() -> None:
    """A client that closes with TLS 1.3's tickets unread resets, though it meant to be polite (DESIGN, section 5)."""
    context = certificates().client_context()
    with scripted_peer(never_ends(), tls=True) as peer:
        with plain(peer) as raw:
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            tls = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
            for _ in range(2):
                try:
                    tls.do_handshake()
                except ssl.SSLWantReadError:
                    raw.sendall(outgoing.read())
                    incoming.write(raw.recv(100_000))
            raw.sendall(outgoing.read())
            raw.recv(1, socket.MSG_PEEK)  # the tickets are here, and stay
            with pytest.raises(ssl.SSLWantReadError):
                tls.unwrap()
            raw.sendall(outgoing.read())
        peer.wait_ended()
        assert peer.connections[0].saw == ["close_notify", "RST"]


def test_rst_while_the_script_sends() -> None:
    with scripted_peer(huge(1 << 30), tls=True, send_buffer=4096) as peer:
        with secure(peer) as client:
            client.sendall(GET)
            receive(client, 100_000)
            reset(client)
        peer.wait_ended()
        assert peer.connections[0].saw == ["RST"]


def test_close_notify_before_rst_while_the_script_sends() -> None:
    with scripted_peer(huge(1 << 30), tls=True) as peer:
        with secure(peer) as client:
            client.sendall(GET)
            receive(client, 100_000)
            with pytest.raises(ssl.SSLError, match=r"(?i)application data after close notify"):
                client.unwrap()
        peer.wait_ended()
        assert peer.connections[0].saw == ["close_notify", "RST"]


def test_bytes_after_close_notify_are_witnessed() -> None:
    with scripted_peer(answers(), tls=True) as peer:
        with secure(peer) as client:
            raw = client.unwrap()
            raw.sendall(b"and another thing")
            raw.shutdown(socket.SHUT_WR)
            peer.wait_ended()
            raw.close()
        assert peer.connections[0].saw == ["close_notify", "trailing", "FIN"]


def test_refused_certificate() -> None:
    elsewhere = certs.issue(trustme.CA(), "localhost")
    with scripted_peer(answers(), tls=elsewhere.server_context()) as peer:
        with pytest.raises(ssl.SSLCertVerificationError), secure(peer):
            pass
        peer.wait_ended()
        [connection] = peer.connections
        assert connection.handshake_error is not None
        assert connection.saw[0] == "alert"
        assert "UNKNOWN_CA" in connection.events[0].detail
        assert connection.requests == []


def test_never_ends_answers_nothing() -> None:
    with scripted_peer(never_ends(), tls=True) as peer, secure(peer) as client:
        client.sendall(GET)
        assert receive(client, len(ANSWER)) == ANSWER
        client.settimeout(0.1)
        with pytest.raises(TimeoutError):
            client.unwrap()
        client.shutdown(socket.SHUT_WR)
        peer.wait_ended()
        assert peer.connections[0].saw == ["close_notify", "FIN"]
        with pytest.raises(TimeoutError):
            client.recv(1)


def test_closes_after_count_announced() -> None:
    with scripted_peer(answers(2, announce=True)) as peer, plain(peer) as client:
        client.sendall(GET + GET)
        announced = response(b"/hello", "Connection: close")
        assert receive(client, 10_000) == ANSWER + announced
        client.close()
        peer.wait_ended()
        assert peer.connections[0].saw == ["FIN"]


@pytest.mark.parametrize(("ending", "error"), [(Ending.FIN, None), (Ending.RST, ConnectionResetError)])
def test_ends_instead_of_the_next_answer(ending: Ending, error: type[OSError] | None) -> None:
    with scripted_peer(answers(1, instead=True, ending=ending)) as peer, plain(peer) as client:
        client.sendall(GET)
        assert receive(client, len(ANSWER)) == ANSWER
        client.sendall(GET)
        if error is None:
            assert client.recv(1) == b""
        else:
            with pytest.raises(error):
                client.recv(1)


@pytest.mark.parametrize(("ending", "whole"), [(Ending.POLITE, True), (Ending.CLOSE, True), (Ending.FIN, False)])
def test_close_delimited(ending: Ending, whole: bool) -> None:
    context = certificates().client_context()
    with scripted_peer(close_delimited(b"abc", ending), tls=True) as peer, plain(peer) as raw:
        with context.wrap_socket(raw, server_hostname="localhost", suppress_ragged_eofs=False) as client:
            client.sendall(GET)
            received = b""
            try:
                while data := client.recv(1000):
                    received += data
                cut = False
            except ssl.SSLEOFError:
                cut = True
        assert received.endswith(b"abc")
        assert cut is not whole


def test_tiny_pieces_arrive_whole() -> None:
    with scripted_peer(answers(pieces=1), tls=True) as peer, secure(peer) as client:
        client.sendall(GET)
        assert receive(client, len(ANSWER)) == ANSWER


def test_bodies_are_read_by_their_framing() -> None:
    chunked = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\nT: 1\r\n\r\n"
    counted = b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello"
    with scripted_peer(answers()) as peer:
        with plain(peer) as client:
            for byte in chunked + counted + GET:
                client.sendall(bytes([byte]))
            answer = response(b"/")
            assert receive(client, 2 * len(answer) + len(ANSWER)) == answer + answer + ANSWER
        peer.wait_ended()
        assert peer.connections[0].requests == [chunked, counted, GET]


def test_huge_body_is_as_long_as_promised() -> None:
    size = 3_000_001
    with scripted_peer(huge(size), tls=True) as peer, secure(peer) as client:
        client.sendall(GET)
        head = b"HTTP/1.1 200 OK\r\nContent-Length: 3000001\r\n\r\n"
        received = receive(client, 10_000)
        assert received.startswith(head)
        rest = size + len(head) - len(received)
        while rest:
            rest -= len(client.recv(min(rest, 65536)))


def test_invites_a_body() -> None:
    with scripted_peer(continues) as peer, plain(peer) as client:
        client.sendall(b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
        invitation = b"HTTP/1.1 100 Continue\r\n\r\n"
        assert receive(client, len(invitation)) == invitation
        client.sendall(b"hello")
        assert receive(client, len(response(b"hello"))) == response(b"hello")


@pytest.mark.parametrize(("ending", "resets"), [(Ending.POLITE, False), (Ending.CLOSE, True)])
def test_refuses_an_upload(ending: Ending, resets: bool) -> None:
    with scripted_peer(refuses_upload(ending)) as peer, plain(peer) as client:
        client.sendall(b"POST / HTTP/1.1\r\nContent-Length: 100000\r\n\r\n" + bytes(1000))
        assert receive(client, 12) == b"HTTP/1.1 413"
        if resets:
            peer.wait_ended()
            client.sendall(bytes(1000))  # answered by RST
            with pytest.raises(ConnectionError):
                client.sendall(bytes(1000))
        else:
            client.sendall(bytes(99_000))
            client.shutdown(socket.SHUT_WR)
            peer.wait_ended()
            assert peer.connections[0].received > 100_000


def test_silent_leaves_the_handshake_undone() -> None:
    with scripted_peer(silent, tls=True, handshake=False) as peer:
        with plain(peer) as raw:
            raw.settimeout(0.1)
            context = certificates().client_context()
            with pytest.raises(TimeoutError), context.wrap_socket(raw, server_hostname="localhost"):
                pass
        peer.wait_ended()
        [connection] = peer.connections
        assert connection.received > 100  # the ClientHello, as TCP's bytes
        assert connection.saw == ["FIN"]


def test_stall_until_released() -> None:
    with scripted_peer(half_response) as peer, plain(peer) as client:
        client.sendall(GET)
        half = b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nten bytes."
        assert receive(client, len(half)) == half
        assert not peer.connections[0].ended.is_set()
        peer.release()
        assert client.recv(1) == b""


def test_small_windows_hold_a_sender() -> None:
    """With a tiny SO_RCVBUF and a script that does not read, a sender is stopped long before a megabyte."""

    def script(connection: PeerConnection) -> None:
        connection.stall()

    with scripted_peer(script, receive_buffer=1024) as peer, plain(peer) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        client.settimeout(0.2)
        with pytest.raises(TimeoutError):
            client.sendall(bytes(1_000_000))


def test_unix_domain_and_ipv6(tmp_path: Path) -> None:
    with scripted_peer(answers(), unix_path=tmp_path / "peer") as peer:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "peer"))
            client.sendall(GET)
            assert receive(client, len(ANSWER)) == ANSWER
        peer.wait_ended()
        assert peer.connections[0].saw == ["FIN"]
    with scripted_peer(answers(), host="::1") as peer, plain(peer) as client:
        assert peer.url == f"http://[::1]:{peer.port}"
        client.sendall(GET)
        assert receive(client, len(ANSWER)) == ANSWER


def test_failure_of_a_script_reaches_the_test() -> None:
    def script(connection: PeerConnection) -> None:
        connection.recv()
        raise ZeroDivisionError("the script's own fault")

    with pytest.raises(ZeroDivisionError), scripted_peer(script) as peer, plain(peer) as client:  # noqa: PT012  on leaving
        client.sendall(b"x")
        peer.wait_ended()


def test_waiting_for_an_end_that_does_not_come_fails() -> None:
    with scripted_peer(answers()) as peer, plain(peer):
        with pytest.raises(TimeoutError, match=r"\(0, \[\], False\)"):
            peer.wait_ended(0.1)
        with pytest.raises(TimeoutError, match="accepted 1 of 2"):
            peer.wait_ended(0.1, connections=2)


def test_leaving_ends_every_thread() -> None:
    before = set(threading.enumerate())  # of earlier tests; they may end meanwhile
    with scripted_peer(answers()) as peer, plain(peer), plain(peer):
        peer.wait_accepted(2)
        assert len(set(threading.enumerate()) - before) == 3
        peer.stop()
        assert set(threading.enumerate()) <= before


@pytest.mark.anyio
async def test_ended_lets_the_loop_run() -> None:
    with scripted_peer(answers()) as peer:
        with plain(peer):
            pass
        await peer.ended()
        assert peer.connections[0].saw == ["FIN"]
