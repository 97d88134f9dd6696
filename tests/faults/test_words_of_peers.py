"""What servers and proxies say: nowhere does it begin a line, act on a terminal, or fill the screen.

Each way in is a peer that says :data:`EVIL`; the ways out are the error and its causes, the report, the log, and what
``allswell`` prints. What it was is still to be read: the word "kept".
"""

from __future__ import annotations

import logging
import os
import pty
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Literal

import httpx2
import pytest

from allswell import AllswellError, AsyncClient, CloseReport, ConnectionPool, ProxyHop
from allswell._errors import RemoteProtocolError, printable, shown
from allswell._report import ConnectionEnd
from tests.support.certificates import certificates
from tests.support.h2_script import ENHANCE_YOUR_CALM, Http2Server, Request, Talk, h2_tls
from tests.support.peer import PeerConnection, Script, scripted_peer
from tests.support.quic_server import QuicServer, ServedConnection

pytestmark = pytest.mark.anyio

#: C0 (with CR, LF, ESC and NUL), DEL, C1, a right-to-left override, a line separator; and more of it than anyone reads.
EVIL = "kept \r\nSet-Cookie: a\n\x1b[2J\x1b]0;title\x07\0\x7f\x9b31m\u202edne\u2028" + "x" * 9000
#: The same for where CR, LF and NUL cannot get to us.
LINE = EVIL.translate({ord("\r"): "", ord("\n"): "", 0: ""})[:3000]


def says(answer: str | bytes) -> Script:
    def script(connection: PeerConnection) -> None:
        if connection.read_request():
            connection.send(answer.encode() if isinstance(answer, str) else answer)
            connection.fin()

    return script


@contextmanager
def http1(answer: str | bytes) -> Iterator[tuple[str, dict[str, Any]]]:
    with scripted_peer(says(answer)) as peer:
        yield peer.url, {}


@contextmanager
def http2(handler: Callable[[Talk, Request], None]) -> Iterator[tuple[str, dict[str, Any]]]:
    with scripted_peer(Http2Server(handler), tls=h2_tls()) as peer:
        yield peer.url, {}


@contextmanager
def http3(handler: Callable[[ServedConnection, int], None]) -> Iterator[tuple[str, dict[str, Any]]]:
    with QuicServer({b"/": lambda connection, stream, _: handler(connection, stream)}) as server:
        yield f"https://127.0.0.1:{server.port}", {"http3": "only"}


@contextmanager
def proxy(script: Script, scheme: Literal["http", "socks5h"] = "http") -> Iterator[tuple[str, dict[str, Any]]]:
    with scripted_peer(script) as peer:
        yield "https://name.example", {"proxies": (ProxyHop(scheme, peer.host, peer.port),)}


def refuses(answer: str) -> Script:
    def script(connection: PeerConnection) -> None:
        if connection.read_head():
            connection.send(answer.encode("utf-8"))
            connection.fin()

    return script


def socks(*answers: bytes) -> Script:
    def script(connection: PeerConnection) -> None:
        for answer in answers:
            connection.recv()
            connection.send(answer)
        connection.fin()

    return script


def goaway(talk: Talk, request: Request) -> None:
    talk.goaway(0, ENHANCE_YOUR_CALM, EVIL.encode()[:16000])


def bad_name(talk: Talk, request: Request) -> None:
    talk.send(talk.headers(request.stream, [(":status", "200"), (LINE, "v")]))


def bad_value(talk: Talk, request: Request) -> None:
    talk.send(talk.headers(request.stream, [(":status", "200"), ("kept", EVIL[:9000])]))


def bad_status(talk: Talk, request: Request) -> None:
    talk.send(talk.headers(request.stream, [(":status", LINE)]))


def close(connection: ServedConnection, stream: int) -> None:
    connection.quic.close(error_code=0x102, reason_phrase=EVIL[:700])


def close_quic(connection: ServedConnection, stream: int) -> None:
    connection.quic.close(error_code=0x0A, frame_type=6, reason_phrase=EVIL[:700])


def h3_section(*fields: tuple[bytes, bytes]) -> Callable[[ServedConnection, int], None]:
    def handler(connection: ServedConnection, stream: int) -> None:
        assert connection.h3 is not None
        connection.raw(stream, b"")
        _, block = connection.h3._encoder.encode(stream, list(fields))
        connection.raw(stream, b"\x01" + struct.pack("!H", 0x4000 | len(block)) + block)

    return handler


_SOCKS_NAME = b"\x05\x00\x00\x03" + bytes([255]) + (b"\x1b[2J\xff" * 51) + b"\x00\x50"

WAYS: dict[str, Callable[[], AbstractContextManager[tuple[str, dict[str, Any]]]]] = {
    "h1 beginning": lambda: http1(EVIL),
    "h1 status line": lambda: http1("HTTP/1.1 2" + LINE + "\r\n\r\n"),
    "h1 field": lambda: http1("HTTP/1.1 200 OK\r\n" + LINE + "\r\n\r\n"),
    "h1 field name": lambda: http1(f"HTTP/1.1 200 OK\r\n{LINE[:300]}: v\r\n\r\n"),
    "h1 chunk": lambda: http1("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + LINE + "\r\n"),
    "h1 length": lambda: http1(f"HTTP/1.1 200 OK\r\nContent-Length: {LINE[:300]}\r\n\r\n"),
    "h1 coding": lambda: http1(f"HTTP/1.1 200 OK\r\nTransfer-Encoding: {LINE[:300]}\r\n\r\n"),
    "h2 GOAWAY": lambda: http2(goaway),
    "h2 field name": lambda: http2(bad_name),
    "h2 field value": lambda: http2(bad_value),
    "h2 status": lambda: http2(bad_status),
    "h3 CONNECTION_CLOSE": lambda: http3(close),
    "QUIC CONNECTION_CLOSE": lambda: http3(close_quic),
    "h3 field name": lambda: http3(h3_section((b":status", b"200"), (LINE.encode()[:2000], b"v"))),
    "h3 field value": lambda: http3(h3_section((b":status", b"200"), (b"kept", EVIL.encode()[:2000]))),
    "h3 status": lambda: http3(h3_section((b":status", LINE.encode()[:2000]))),
    "proxy's reason": lambda: proxy(refuses(f"HTTP/1.1 403 {LINE[:900]}\r\n\r\n")),
    "proxy's reason of C1": lambda: proxy(refuses("HTTP/1.1 403 kept \u009b31m\r\n\r\n")),
    "proxy's body": lambda: proxy(refuses("HTTP/1.1 403 Forbidden\r\n\r\n" + EVIL)),
    "proxy's beginning": lambda: proxy(refuses(EVIL)),
    "SOCKS version": lambda: proxy(socks(EVIL.encode()), "socks5h"),
    "SOCKS method": lambda: proxy(socks(b"\x05\x1b"), "socks5h"),
    "SOCKS reply": lambda: proxy(socks(b"\x05\x00", b"\x05\x1b\x00\x01"), "socks5h"),
    "SOCKS name": lambda: proxy(socks(b"\x05\x00", _SOCKS_NAME), "socks5h"),
}


def fit(text: str) -> None:
    """It can be shown."""
    assert printable(text) == text, ascii(text)
    assert len(text) <= 1000, len(text)


@pytest.fixture
def logged() -> Iterator[list[logging.LogRecord]]:
    """All that is logged, in debug mode."""
    records: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    handler = Keep()
    root = logging.getLogger()
    names = ["allswell", "quic", "httpx2"]  # (hpack's tells header fields as bytes)
    before = {name: logging.getLogger(name).level for name in names}
    root.addHandler(handler)
    for name in names:
        logging.getLogger(name).setLevel(logging.DEBUG)
    yield records
    root.removeHandler(handler)
    for name, level in before.items():
        logging.getLogger(name).setLevel(level)


@pytest.mark.parametrize("way", WAYS)
async def test_in_errors_reports_and_logs(way: str, logged: list[logging.LogRecord]) -> None:
    ends: list[ConnectionEnd] = []
    told: list[str] = []

    def ended(end: ConnectionEnd) -> None:
        ends.append(end)
        told.append(str(pool.snapshot()))

    with WAYS[way]() as (url, settings):
        pool = ConnectionPool(ssl_context=certificates().client_context(), on_connection_end=ended, **settings)
        async with AsyncClient(pool=pool, trust_env=False) as client:
            with pytest.raises(httpx2.TransportError) as caught:
                await client.get(url + "/")
    error: BaseException | None = caught.value
    ours = caught.value.__cause__
    assert isinstance(ours, AllswellError)
    names = [url.partition("://")[2], *map(str, pool.config.proxies)]
    assert any(name in str(ours) for name in names), str(ours)
    while isinstance(error, (AllswellError, httpx2.HTTPError)):
        told.append(str(error))
        error = error.__cause__
    told += [str(CloseReport(tuple(ends))), str(client.close_report)]
    for text in told:
        for line in text.split("\n"):
            fit(line)
    for record in logged:
        assert printable(record.getMessage()) == record.getMessage(), record


async def test_what_was_said_is_told_as_far_as_it_can_be() -> None:
    with scripted_peer(Http2Server(goaway), tls=h2_tls()) as peer:
        async with ConnectionPool(ssl_context=certificates().client_context()) as pool:
            with pytest.raises(RemoteProtocolError, match=r"ENHANCE_YOUR_CALM \(kept Set-Cookie: a .\[2J") as caught:
                await pool.request("GET", peer.url)
    assert str(caught.value).endswith("x…)")


async def test_reason_phrase_that_a_caller_is_told() -> None:
    """httpx2 puts it into its errors and its log."""
    with scripted_peer(says(f"HTTP/1.1 404 {LINE[:100]}\r\nContent-Length: 0\r\n\r\n")) as peer:
        async with AsyncClient() as client:
            response = await client.get(peer.url)
        assert response.reason_phrase.startswith("kept ")
        fit(response.reason_phrase)
        with pytest.raises(httpx2.HTTPStatusError) as caught:
            response.raise_for_status()
        assert "\x1b" not in str(caught.value)


async def test_proxy_that_speaks_http2() -> None:
    """It has no reason phrase, but a body."""

    def handler(talk: Talk, request: Request) -> None:
        talk.answer(request, EVIL.encode()[:1000], status=403)

    with scripted_peer(Http2Server(handler), tls=h2_tls()) as peer:
        context = certificates().client_context()
        hop = httpx2.Proxy(peer.url, ssl_context=context)
        async with AsyncClient(proxy=hop, verify=context, trust_env=False) as client:
            with pytest.raises(httpx2.ProxyError, match="403") as caught:
                await client.get("https://name.example/")
            fit(str(caught.value))


@pytest.mark.parametrize("arguments", [[], ["-v"], ["-i"], ["--ends"]], ids=" ".join)
def test_terminal(arguments: list[str]) -> None:
    """On one: the status line, the fields, and an error."""
    fields = f"X-Evil: {LINE[:200]}\r\nContent-Length: 2\r\n"
    with scripted_peer(says(f"HTTP/1.1 200 {LINE[:100]}\r\n{fields}\r\nok")) as peer, http1(EVIL) as (broken, _):
        told = on_terminal([*arguments, f"{peer.url}/", f"{broken}/"])
    assert "kept" in told
    plain = told.replace("\r\n", "\n")
    for colour in ("\x1b[1;32m", "\x1b[1;31m", "\x1b[36m", "\x1b[1m", "\x1b[0m"):
        plain = plain.replace(colour, "")  # those are our own
    for line in plain.split("\n"):
        assert printable(line) == line, ascii(line)


def test_binary_body_is_not_for_a_terminal() -> None:
    """curl's rule: a NUL says that it is binary."""
    with scripted_peer(says(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n\x1b[2J\0abc")) as peer:
        told = on_terminal([f"{peer.url}/"])
    assert "binary" in told
    assert "\x1b[2J" not in told


def on_terminal(arguments: list[str]) -> str:
    """What the command prints on a terminal."""
    command = [str(Path(sys.executable).with_name("allswell")), *arguments]
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        told = b""
        while True:
            try:
                piece = os.read(ours, 65536)
            except OSError:  # EIO: it has ended
                break
            if not piece:
                break
            told += piece
        process.wait(60)
    os.close(ours)
    return told.decode()


def test_bounds() -> None:
    assert shown("x" * 9000) == "x" * 199 + "…"
    assert shown(b"a \r\n\t b\xff") == "a b\N{REPLACEMENT CHARACTER}"
    assert shown("grün ✓") == "grün ✓"
    assert len(str(AllswellError("x" * 99999))) == 4000


def test_aioquics_warnings_are_not_for_standard_error() -> None:
    """Where a program has not set up logging, Python prints warnings there."""
    code = "import logging, allswell._filters.quic; logging.getLogger('quic').warning('of what a server did')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=30, check=True)
    assert done.stderr == b""
