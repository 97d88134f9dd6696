"""The driver with HTTP/1.1: back-pressure both ways, halves that end at different times, what close waits for."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator
from time import monotonic
from typing import Any

import anyio
import pytest

from allswell import ConnectionPool
from allswell._config import Timeouts
from allswell._errors import TransportError
from allswell._report import ConnectionEnd, Outcome
from allswell.testing import Origin
from tests.support.certificates import certificates
from tests.support.lag import LAG
from tests.support.peer import PeerConnection, scripted_peer
from tests.support.scripts import answers, response

pytestmark = pytest.mark.anyio

both = pytest.mark.parametrize("tls", [False, True])


def pool_for(**settings: Any) -> ConnectionPool:
    return ConnectionPool(ssl_context=certificates().client_context(), **settings)


@both
async def test_reader_that_does_not_read_holds_the_peer(tls: bool) -> None:
    sent = 0

    def script(connection: PeerConnection) -> None:
        nonlocal sent
        connection.read_request()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 50000000\r\n\r\n")
        for _ in range(500):
            connection.send(bytes(100_000))
            sent += 100_000

    with scripted_peer(script, tls=tls, send_buffer=65536) as peer:
        async with pool_for() as pool, pool.stream("GET", peer.url) as streamed:
            before = -1
            with anyio.fail_after(30):
                while before != sent:  # until it is held
                    before = sent
                    await anyio.sleep(0.2)
            assert sent < 20_000_000
            size = 0
            async for piece in streamed:
                size += len(piece)
            assert size == 50_000_000


async def test_unread_response_and_an_upload_that_ends_after_it() -> None:
    """Reading was paused for the unread response; the exchange's end resumes it, or the next would wait for ever."""
    go_on = anyio.Event()

    def script(connection: PeerConnection) -> None:
        head = connection.read_head()
        connection.send(response(bytes(1_000_000)))
        connection.read_body(head)
        answers()(connection)

    async def content() -> AsyncIterator[bytes]:
        yield b"x"
        await go_on.wait()
        yield b"y"

    with scripted_peer(script) as peer:
        async with pool_for() as pool:
            # httpx2's way: the head came, the body lies there
            async with pool.stream("POST", peer.url, content=content()) as streamed:
                await anyio.sleep(0.2)
                go_on.set()
                await anyio.sleep(0.1)
                assert len(await streamed.read()) == 1_000_000
            for number in range(3):
                answer = await pool.request("GET", f"{peer.url}/{number}")
                assert await answer.read() == b"/%d" % number
        assert len(peer.connections) == 1


@both
async def test_close_waits_for_bytes_still_to_be_sent(tls: bool) -> None:
    """The answer came before the peer had read all: the goodbye comes after the request's last byte."""
    go_on = threading.Event()
    bodies: list[bytes] = []
    content = bytes(range(256)) * 1000  # all of which is kept here, and more than the sockets take

    def script(connection: PeerConnection) -> None:
        head = connection.read_head()
        connection.send(response(b"early"))
        assert go_on.wait(30)
        bodies.append(connection.read_body(head))

    with scripted_peer(script, tls=tls, receive_buffer=4096) as peer:
        pool = pool_for(socket_options=[(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)])
        assert await (await pool.request("POST", peer.url, content=content)).read() == b"early"
        async with anyio.create_task_group() as tasks:

            async def later() -> None:
                await anyio.sleep(0.2)
                go_on.set()

            tasks.start_soon(later)
            report = await pool.aclose(30)
        await peer.ended()
        assert bodies == [content]
        assert peer.connections[0].saw == (["close_notify", "FIN"] if tls else ["FIN"])
        assert report.clean


@both
async def test_close_does_not_wait_for_a_peer_that_takes_nothing(tls: bool) -> None:
    """Part of a request is still here when the grace ends: a close_notify or FIN would make it look whole."""

    def script(connection: PeerConnection) -> None:
        connection.read_head()
        connection.send(response(b"early"))
        connection.stall()

    with scripted_peer(script, tls=tls, receive_buffer=4096) as peer:
        pool = pool_for(socket_options=[(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)])
        assert await (await pool.request("POST", peer.url, content=bytes(250_000))).read() == b"early"
        began = monotonic()
        report = await pool.aclose(0.4)
        assert monotonic() - began < 0.4 + LAG
        assert not report.clean
        peer.release()
        await peer.ended()
        assert peer.connections[0].saw == ["RST"]


async def test_numbers_of_the_report() -> None:
    ends: list[ConnectionEnd] = []
    async with Origin(versions=["h1"]) as origin:
        async with ConnectionPool(ssl_context=origin.client_context(), on_connection_end=ends.append) as pool:
            for number in range(3):
                await pool.request("GET", f"{origin.url}/{number}")
        assert pool.close_report is not None
        assert list(pool.close_report.connections) == ends
        [end] = ends
        assert end.route == origin.url
        assert (end.http_version, end.exchanges, end.cut, end.reason) == ("HTTP/1.1", 3, 0, "the pool closes")
        assert [layer.layer for layer in end.layers] == ["h1", "tls", "tcp"]
        assert end.layers[1].outcome is Outcome.CLEAN
        assert 0 < end.seconds < LAG
        assert end.clean


async def test_server_that_takes_no_more_until_we_take_what_it_echoes() -> None:
    """What an upload has left over holds up no reading: the server would wait for us as we for it."""
    piece, count = bytes(1_000_000), 4

    def echo(connection: PeerConnection) -> None:
        connection.read_head()
        left = len(piece) * count
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % left)
        while left:
            data = connection.read_exactly(min(left, 65536))
            left -= len(data)
            connection.send(data)
        connection.read_until_end()

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(count):
            yield piece

    small = [(socket.SOL_SOCKET, option, 65536) for option in (socket.SO_SNDBUF, socket.SO_RCVBUF)]
    with scripted_peer(echo, send_buffer=4096, receive_buffer=4096) as peer:
        async with pool_for(socket_options=small) as pool:
            headers = [(b"Content-Length", b"%d" % (len(piece) * count))]
            with anyio.fail_after(30):
                response = await pool.request("POST", peer.url, headers=headers, content=pieces())
            assert await response.read() == piece * count


async def test_buffer_that_its_owner_fills_anew() -> None:
    """What the socket did not take yet is what was in it when it was given."""
    came = b""

    def script(connection: PeerConnection) -> None:
        nonlocal came
        connection.read_head()
        connection.stall()  # until all of it waits on our side
        came = connection.read_exactly(size)
        connection.send(response(b""))

    async def pieces() -> AsyncIterator[Any]:
        buffer = bytearray(size // 2)
        for fill in (1, 2):
            buffer[:] = bytes([fill]) * len(buffer)
            yield buffer
        buffer[:] = bytes(len(buffer))
        peer.release()

    size = 128 * 1024
    small = [(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)]
    with scripted_peer(script, receive_buffer=4096) as peer:
        async with pool_for(socket_options=small) as pool:
            with anyio.fail_after(30):
                headers = [(b"Content-Length", b"%d" % size)]
                await pool.request("POST", peer.url, headers=headers, content=pieces())
    assert came == bytes([1]) * (size // 2) + bytes([2]) * (size // 2)


def _refuses(connection: PeerConnection) -> None:
    connection.read_head()
    connection.read_exactly(1)  # the body has begun
    connection.send(response(b"no", status="413 Content Too Large"))
    connection.stall()


async def test_iterator_that_fails_at_its_end_is_told() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        try:
            while True:
                yield bytes(100_000)
        finally:
            await anyio.sleep(0.05)
            raise ValueError("the caller's own")

    with scripted_peer(_refuses) as peer:
        async with pool_for() as pool:
            with anyio.fail_after(30), pytest.raises(ValueError, match="the caller's own"):
                await pool.request("POST", peer.url, content=pieces())


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_iterator_that_waits_for_what_was_cancelled(anyio_backend: str) -> None:
    """On asyncio that looks like the end of our own task; whoever waits for the response must learn of it."""

    async def pieces() -> AsyncIterator[bytes]:
        yield b"a"
        waited_for = asyncio.get_running_loop().create_future()
        waited_for.cancel()
        await waited_for

    async with Origin(tls=False) as origin, pool_for() as pool:
        with anyio.fail_after(30), pytest.raises(TransportError, match=r"the upload to .* was cancelled"):
            await pool.request("POST", origin.url, content=pieces(), timeouts=Timeouts(None, None, None, None))
