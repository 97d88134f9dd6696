"""Request bodies, interim responses and tunnels over HTTP/2, as the server saw them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

from allswell import ConnectionPool
from allswell._config import Timeouts
from allswell._messages import Headers, RequestHead
from allswell._request.request import Request as PoolRequest
from allswell._request.route import parsed
from tests.support.h2_script import (
    ENABLE_CONNECT_PROTOCOL,
    INITIAL_WINDOW_SIZE,
    NO_ERROR,
    Http2Server,
    Request,
    Talk,
)
from tests.support.peer import scripted_peer

pytestmark = pytest.mark.anyio

SOON = Timeouts(total=30)


def h2c() -> ConnectionPool:
    """HTTP/2 by prior knowledge."""
    return ConnectionPool(http1=False)


def size_of(talk: Talk, request: Request) -> None:
    """Answer with how much came."""
    talk.answer(request, str(len(talk.read_body(request))).encode())


@pytest.mark.parametrize("window", [1, 1000, 65535])
async def test_body_larger_than_the_window(window: int) -> None:
    size = 100 * window if window == 1 else 300_000
    server = Http2Server(size_of, settings={INITIAL_WINDOW_SIZE: window})
    with scripted_peer(server) as peer:
        async with h2c() as pool:
            await pool.request("GET", peer.url)  # its SETTINGS are known
            response = await pool.request("POST", peer.url, content=bytes(size), timeouts=SOON)
            assert await response.read() == str(size).encode()


async def test_streamed_body_with_trailers() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(30):
            yield b"x" * 10_000

    sent: Headers = [(b"Digest", b"abc")]
    server = Http2Server(size_of)
    with scripted_peer(server) as peer:
        async with h2c() as pool:
            response = await pool.request("POST", peer.url, content=pieces(), trailers=sent, timeouts=SOON)
            assert await response.read() == b"300000"
    [request] = server.requests
    assert request.trailers == {"digest": "abc"}
    assert "transfer-encoding" not in request.headers


async def test_piece_that_is_not_bytes_fails_its_own_request_only() -> None:
    async def pieces(last: object) -> AsyncIterator[Any]:
        yield b"12"
        yield last

    with scripted_peer(Http2Server(size_of)) as peer:
        async with h2c() as pool:
            for wrong in ("34", 34, None):
                with pytest.raises(TypeError, match="bytes-like"):
                    await pool.request("POST", peer.url, content=pieces(wrong), timeouts=SOON)
            for good in (bytearray(b"34"), memoryview(b"34")):
                response = await pool.request("POST", peer.url, content=pieces(good), timeouts=SOON)
                assert await response.read() == b"4"
        assert len(peer.connections) == 1
        assert pool.close_report is not None
        assert pool.close_report.clean


async def test_early_refusal_is_the_answer() -> None:
    """413 with RST_STREAM(NO_ERROR) (RFC 9113 §8.1): the rest of the upload stops, the connection lives."""

    def refuse(talk: Talk, request: Request) -> None:
        if request.headers[":method"] == "POST":
            talk.credits_at_once = False
            talk.answer(request, b"too much", status=413)
            talk.rst(request.stream, NO_ERROR)
        else:
            talk.answer(request)

    server = Http2Server(refuse)
    with scripted_peer(server) as peer:
        async with h2c() as pool:
            response = await pool.request("POST", peer.url, content=bytes(3_000_000), timeouts=SOON)
            assert (response.status, await response.read()) == (413, b"too much")
            fine = await pool.request("GET", f"{peer.url}/fine", timeouts=SOON)
            assert await fine.read() == b"/fine"
        assert len(server.talks) == 1
        assert len(server.talks[0].requests[1].body) < 100_000


async def test_answer_that_begins_while_the_upload_goes_on() -> None:
    """200 at once, the body echoed as it comes: both directions run side by side."""

    def echo(talk: Talk, request: Request) -> None:
        talk.send(talk.headers(request.stream, [(":status", "200")]))
        done = 0
        while not request.ended or done < len(request.body):
            if done == len(request.body) and talk.read() is None:
                return
            piece = bytes(request.body[done:])
            done += len(piece)
            talk.body(request, piece, end=False)
        talk.body(request, b"!", end=True)

    content = bytes(range(256)) * 4000
    server = Http2Server(echo)
    with scripted_peer(server) as peer:
        async with h2c() as pool:
            response = await pool.request("POST", peer.url, content=content, timeouts=SOON)
            assert await response.read() == content + b"!"


async def test_interim_responses_and_continue() -> None:
    def interim(talk: Talk, request: Request) -> None:
        talk.send(talk.headers(request.stream, [(":status", "103"), ("link", "</s>; rel=preload")]))
        assert not request.body
        talk.send(talk.headers(request.stream, [(":status", "100")]))
        size_of(talk, request)

    server = Http2Server(interim)
    with scripted_peer(server) as peer:
        async with ConnectionPool(http1=False, expect_continue_timeout=60) as pool:
            headers = [(b"Expect", b"100-continue")]
            with anyio.fail_after(30):
                response = await pool.request("POST", peer.url, headers=headers, content=b"body", timeouts=SOON)
            assert await response.read() == b"4"
            assert [head.status for head in response.informational] == [103, 100]


@pytest.mark.parametrize("protocol", [None, b"websocket"])
async def test_connect_is_a_tunnel(protocol: bytes | None) -> None:
    def tunnel(talk: Talk, request: Request) -> None:
        talk.answer(request, b"hello", end=False)
        talk.answer_tunnel(request)

    server = Http2Server(tunnel, settings={ENABLE_CONNECT_PROTOCOL: 1})
    with scripted_peer(server) as peer:
        async with h2c() as pool:
            to, _ = parsed(peer.url)
            target = b"/chat" if protocol else b"origin.example:443"
            head = RequestHead(b"CONNECT", b"http", to.authority, target, [], protocol)
            response = await pool.send(PoolRequest(head, to.route, timeouts=SOON))
            assert response.status == 200
            stream = response.network_stream
            assert await stream.read(100, timeout=60) == b"hello"
            await stream.write(b"ping")
            assert await stream.read(100, timeout=60) == b"PING"
            await stream.aclose()
            await response.aclose()
            report = await pool.aclose()
        assert report.clean, report
    [request] = server.requests
    assert request.headers.get(":protocol") == (protocol.decode() if protocol else None)
    assert request.headers.get(":path") == ("/chat" if protocol else None)
