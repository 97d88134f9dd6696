"""HTTP/3 against aioquic's server, which records: requests, bodies, resets, GOAWAY, and what a broken server does."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import anyio
import pytest

from allswell._errors import ExchangeReset, LocalProtocolError, NotProcessed, RemoteProtocolError
from allswell._report import Outcome
from tests.support.h3_proxy import Http3Proxy
from tests.support.quic_client import quic_client, quic_settings, read
from tests.support.quic_server import QuicServer, ServedConnection, hints_and_trailers

pytestmark = pytest.mark.anyio
Fields = dict[bytes, bytes]


async def seen(server: QuicServer, word: str, count: int = 1) -> list[tuple[Any, ...]]:
    """Wait until the server saw so many of them."""
    with anyio.fail_after(30):
        while len(entries := server.all(word)) < count:  # noqa: ASYNC110  # the server lives in another thread
            await anyio.sleep(0.005)
    return entries


async def test_get() -> None:
    with QuicServer() as server:
        async with quic_client(server.port) as client:
            head, body = await client.get("/hello")
            assert (head.status, head.http_version, body) == (200, b"HTTP/3", b"hello")
            assert (b"content-length", b"5") in head.headers
            head, body = await client.get("/bytes/300000")
            assert body == b"x" * 300000
            await client.aclose()
    assert server.all("request") == [("GET", "/hello"), ("GET", "/bytes/300000")]


async def test_many_at_once() -> None:
    with QuicServer() as server:
        async with quic_client(server.port) as client:
            sizes: list[int] = []

            async def one(size: int) -> None:
                _, body = await client.get(f"/bytes/{size}")
                sizes.append(len(body))

            async with anyio.create_task_group() as group:
                for size in range(1, 60):
                    group.start_soon(one, size * 100)
            assert sorted(sizes) == [size * 100 for size in range(1, 60)]


async def test_upload_larger_than_every_window() -> None:
    with QuicServer(max_data=100_000, max_stream_data=50_000) as server:
        async with quic_client(server.port) as client:

            async def body() -> AsyncIterator[bytes]:
                for _ in range(30):
                    yield b"y" * 50_000

            exchange = client.open("/echo", "POST", upload=True)
            exchange.start_upload(body())
            assert (await exchange.response()).status == 200
            assert await read(exchange) == b"1500000"


async def test_trailers_both_ways_and_1xx() -> None:
    with QuicServer({b"/t": hints_and_trailers}) as server:
        async with quic_client(server.port) as client:
            exchange = client.open("/t", "POST", upload=True)
            await exchange.begin_upload().send(b"abc", end=True, trailers=[(b"Digest", b"2")])
            assert (await exchange.response()).status == 200
            assert [head.status for head in exchange.informational] == [103]
            assert await read(exchange) == b"body"
            assert exchange.trailers == [(b"checksum", b"1")]
            assert (await seen(server, "trailers"))[0][1] == [(b"digest", b"2")]


async def test_resets_by_the_server() -> None:
    def reset(connection: ServedConnection, stream: int, fields: Fields) -> None:
        connection.quic.reset_stream(stream, 0x102)

    def reject(connection: ServedConnection, stream: int, fields: Fields) -> None:
        connection.quic.reset_stream(stream, 0x10B)

    with QuicServer({b"/reset": reset, b"/reject": reject}) as server:
        async with quic_client(server.port) as client:
            with pytest.raises(ExchangeReset) as caught:
                await client.get("/reset")
            assert (caught.value.code, caught.value.by) == (0x102, "peer")
            with pytest.raises(NotProcessed) as refused:
                await client.get("/reject")
            assert refused.value.proven
            assert (await client.get("/hello"))[1] == b"hello"  # the connection lives


async def test_upload_refused_with_no_error_keeps_the_response() -> None:
    def refuse(connection: ServedConnection, stream: int, fields: Fields) -> None:
        connection.head(stream, 413)
        connection.quic.stop_stream(stream, 0x100)
        connection.data(stream, b"too much", end=True)

    with QuicServer({b"/refuse": refuse}) as server:
        async with quic_client(server.port) as client:

            async def body() -> AsyncIterator[bytes]:
                while True:
                    yield b"z" * 10_000
                    await anyio.lowlevel.checkpoint()

            exchange = client.open("/refuse", "POST", upload=True)
            exchange.start_upload(body())
            assert (await exchange.response()).status == 413
            assert await read(exchange) == b"too much"
            assert (await client.get("/hello"))[1] == b"hello"


async def test_cancel_stops_and_resets_and_gives_back_credit() -> None:
    settings = quic_settings(stream_window=64_000, connection_window=100_000)
    with QuicServer() as server:
        async with quic_client(server.port, settings) as client:
            for round_ in range(20):  # each leaves up to 64 kB unread: without the credit the third would hang
                exchange = client.open("/bytes/1000000")
                await exchange.response()
                await exchange.receive()
                exchange.abandon()
                stops = await seen(server, "stop", round_ + 1)
                assert stops[-1] == (exchange.number, 0x10C)
            assert (await client.get("/bytes/200000"))[1] == b"x" * 200_000


async def test_a_slow_reader_holds_the_sender_at_the_window() -> None:
    settings = quic_settings(stream_window=64_000, connection_window=100_000)
    with QuicServer() as server:
        async with quic_client(server.port, settings) as client:
            exchange = client.open("/bytes/2000000")
            await exchange.response()
            with anyio.fail_after(30):
                while exchange.body.buffered < 60_000:  # noqa: ASYNC110  # nothing tells of it
                    await anyio.sleep(0.01)
            for _ in range(20):  # it does not grow any more
                await anyio.sleep(0.01)
                assert exchange.body.buffered <= 64_000
            other = client.open("/bytes/30000")  # the connection's window has room for another
            assert len(await read(other)) == 30_000
            assert len(await read(exchange)) == 2_000_000


@pytest.mark.parametrize("size", [1, 3])
async def test_goaway_of_the_server(size: int) -> None:
    waiting: list[int] = []

    def hold(connection: ServedConnection, stream: int, fields: Fields) -> None:
        waiting.append(stream)

    with QuicServer({b"/hold": hold}) as server:
        async with quic_client(server.port) as client:
            first, second = client.open("/hold"), client.open("/hold")
            await seen(server, "request", 2)
            # The frame byte by byte, or in unequal pieces: GOAWAY(second), then a later one that names fewer.
            goaway = b"\x07\x01" + bytes([second.number])
            for start in range(0, len(goaway), size):
                piece = goaway[start : start + size]
                server.call(partial(ServedConnection.raw, stream=ServedConnection.control_stream, data=piece))
                await anyio.sleep(0.01)
            with pytest.raises(NotProcessed) as caught:
                await second.response()
            assert caught.value.proven
            assert client.left
            assert client.connection.capacity() == 0
            server.call(lambda connection: connection.respond(waiting[0], 200, b"late"))
            assert (await first.response()).status == 200
            assert await read(first) == b"late"
            end = await client.ended()  # drained: it says goodbye by itself
            assert end.layers[0].said == "GOAWAY"
            assert await seen(server, "close") == [(0x1D, 0x100)]


async def test_our_goaway_comes_before_the_close() -> None:
    with QuicServer() as server:
        async with quic_client(server.port) as client:
            await client.get("/hello")
            end = await client.aclose()
    assert [entry for entry in server.seen if entry[0] in ("goaway", "close")] == [
        ("goaway", 0),
        ("close", 0x1D, 0x100),
    ]
    assert [layer.layer for layer in end.layers] == ["h3", "quic", "udp"]
    assert end.clean


async def test_a_malformed_response_ends_its_exchange_only() -> None:
    def bad_length(connection: ServedConnection, stream: int, fields: Fields) -> None:
        connection.respond(stream, 200, b"abc", (b"content-length", b"5"))

    def no_status(connection: ServedConnection, stream: int, fields: Fields) -> None:
        assert connection.h3 is not None
        connection.h3.send_headers(stream, [(b"x", b"y")], True)

    def upper(connection: ServedConnection, stream: int, fields: Fields) -> None:
        connection.respond(stream, 200, b"", (b"X-Upper", b"1"))

    def nothing(connection: ServedConnection, stream: int, fields: Fields) -> None:
        connection.raw(stream, b"", end=True)

    def huge(connection: ServedConnection, stream: int, fields: Fields) -> None:
        connection.raw(stream, b"\x01" + (0x80000000 | 200_000).to_bytes(4, "big") + b"y" * 1000)

    routes = {b"/length": bad_length, b"/status": no_status, b"/upper": upper, b"/nothing": nothing, b"/huge": huge}
    with QuicServer(routes) as server:
        async with quic_client(server.port) as client:
            for path in routes:
                with pytest.raises(RemoteProtocolError) as caught:
                    await client.get(path.decode())
                assert caught.value.reach == "exchange"
            assert (await client.get("/hello"))[1] == b"hello"


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"\x04\x00", 0x105),  # SETTINGS again
        (b"\x00\x01x", 0x105),  # DATA on the control stream
        (b"\x07\x01\x01", 0x108),  # GOAWAY that names no request
        (b"\x07\x02\x00\x00", 0x106),  # GOAWAY with something after it
        (b"\x07\x01\x00\x07\x01\x04", 0x108),  # GOAWAY that takes back
        (b"\x0d\x01\x00", 0x105),  # MAX_PUSH_ID, which is for clients to send
        (b"\x02\x00", 0x105),  # PRIORITY of HTTP/2
        (b"\x03\x01\x00", 0x108),  # CANCEL_PUSH
        (b"\x0c\x02\x00\x01", 0x106),  # ORIGIN with an entry that is cut short
    ],
)
async def test_a_broken_control_stream_closes_the_connection_with_its_code(raw: bytes, code: int) -> None:
    with QuicServer() as server:
        async with quic_client(server.port) as client:
            await client.get("/hello")
            exchange = client.open("/echo", "POST", upload=True)
            server.call(lambda connection: connection.raw(connection.control_stream, raw))
            with pytest.raises((RemoteProtocolError, NotProcessed)):
                await exchange.response()
            assert (await seen(server, "close"))[0] == (0x1D, code)
            end = await client.ended()
            assert not end.clean


async def test_unknown_frames_and_streams_are_ignored() -> None:
    def grease(connection: ServedConnection, stream: int, fields: Fields) -> None:
        connection.raw(stream, b"\x21\x03abc")
        connection.respond(stream, 200, b"fine")

    with QuicServer({b"/grease": grease}) as server:
        async with quic_client(server.port) as client:
            await client.get("/hello")

            def open_unknown(connection: ServedConnection) -> None:
                stream = connection.quic.get_next_available_stream_id(is_unidirectional=True)
                connection.raw(stream, b"\x21" + b"junk" * 1000)
                connection.raw(connection.control_stream, b"\x21\x02hi")

            server.call(open_unknown)
            assert (await client.get("/grease"))[1] == b"fine"
            assert (await seen(server, "stop"))[0][1] == 0x103


async def test_connect_tunnel_and_extended_connect() -> None:
    def tunnel(connection: ServedConnection, stream: int, fields: Fields) -> None:
        assert fields[b":authority"] == b"example.org:443"
        assert b":path" not in fields
        connection.head(stream, 200)
        connection.data(stream, b"tunnelled")

    def websocket(connection: ServedConnection, stream: int, fields: Fields) -> None:
        assert (fields[b":protocol"], fields[b":method"]) == (b"websocket", b"CONNECT")
        connection.head(stream, 200)
        connection.data(stream, b"frames")

    with QuicServer({b"": tunnel, b"/ws": websocket}) as server:
        async with quic_client(server.port) as client:
            for path, protocol, expected in (
                ("example.org:443", None, b"tunnelled"),
                ("/ws", b"websocket", b"frames"),
            ):
                exchange = client.open(path, "CONNECT", upload=True, protocol=protocol)
                assert (await exchange.response()).status == 200
                assert exchange.tunnel is not None
                assert await exchange.receive() == expected
                await exchange.tunnel.send(b"to you")
                exchange.abandon()


async def test_http_datagrams_beside_a_stream() -> None:
    """RFC 9297 §2.1: each in one packet; what is too large for that is dropped and holds up nothing."""

    def echo(connection: ServedConnection, stream: int, fields: Fields) -> bool:
        assert connection.h3 is not None
        connection.h3.send_datagram(stream, b"\0early")
        connection.h3.send_datagram(stream + 4, b"\0for nobody")
        connection.head(stream, 200)
        return True

    with Http3Proxy(echo) as server:
        async with quic_client(server.port, quic_settings(datagrams=True, max_datagram_size=1350)) as client:
            exchange = client.open("/", "CONNECT", upload=True, protocol=b"connect-udp")
            assert (await exchange.response()).status == 200
            room = client.connection.datagram_room(exchange)
            assert 1350 - 50 < room < 1350
            client.connection.send_datagrams(exchange, [b"\0one", bytes(room + 1), bytes(room), b"\0" * 3])
            with anyio.fail_after(30):
                while len(server.up) < 3:  # noqa: ASYNC110  the server lives in another thread
                    await anyio.sleep(0.005)
            assert [size for _, size in server.up] == [3, room - 1, 2]
            assert exchange.take_datagrams() == [b"\0early"]
            assert exchange.take_datagrams() == []
            exchange.abandon()
            assert client.connection.datagram_room(exchange) == 0
            client.connection.send_datagrams(exchange, [b"\0too late"])


async def test_datagrams_wait_where_the_network_is_slow_and_are_bounded_where_nobody_takes_them() -> None:
    def flood(connection: ServedConnection, stream: int, fields: Fields) -> bool:
        assert connection.h3 is not None
        connection.head(stream, 200)
        for number in range(3000):
            connection.h3.send_datagram(stream, b"\0%d" % number)
        return True

    with Http3Proxy(flood) as server:
        async with quic_client(server.port, quic_settings(datagrams=True, max_datagram_size=1350)) as client:
            exchange = client.open("/", "CONNECT", upload=True, protocol=b"connect-udp")
            assert (await exchange.response()).status == 200
            sent = 0
            assert exchange.tunnel is not None
            with anyio.fail_after(30):
                while sent < 2000:
                    if exchange.tunnel.room() > 0:
                        client.connection.send_datagrams(exchange, [bytes(1200)] * 10)
                        sent += 10
                        assert client.quic.connection.unsent_datagrams < 300_000
                    else:
                        await exchange.tunnel.wait_room()
                while len(server.up) < 2000:  # noqa: ASYNC110  the server lives in another thread
                    await anyio.sleep(0.005)
            assert len(exchange.take_datagrams()) <= 1024


async def test_no_datagrams_where_the_peer_takes_none() -> None:
    with Http3Proxy(datagrams=False) as server:
        async with quic_client(server.port, quic_settings(datagrams=True)) as client:
            exchange = client.open("/hello")
            assert (await exchange.response()).status == 200
            assert client.connection.datagram_room(exchange) == 0


async def test_what_http_cannot_say() -> None:
    with QuicServer() as server:
        async with quic_client(server.port) as client:
            for path, headers in (
                ("/a b", []),
                ("/", [(b"bad name", b"x")]),
                ("/", [(b"x", b"a\r\nb: c")]),
                ("/", [(b"content-length", b"-1")]),
            ):
                with pytest.raises(LocalProtocolError):
                    client.open(path, headers=headers)
            with pytest.raises(LocalProtocolError):
                client.open("/echo", "POST", [(b"content-length", b"3")], body=b"four")
            head, body = await client.get("/echo", method="POST", body=b"xyz", headers=[(b"Connection", b"keep-alive")])
            assert (head.status, body) == (200, b"3")


@pytest.mark.slow
@pytest.mark.timeout(300)  # a busy machine takes so long
async def test_ten_thousand_requests_leave_nothing_behind() -> None:
    with QuicServer() as server:
        async with quic_client(server.port) as client:

            async def some(count: int) -> None:
                for _ in range(count):
                    assert (await client.get("/hello"))[1] == b"hello"

            async def many(count: int) -> int:
                async with anyio.create_task_group() as group:
                    for _ in range(10):
                        group.start_soon(some, count // 10)
                gc.collect()
                return tracemalloc.get_traced_memory()[0]

            await many(1000)
            tracemalloc.start(1)
            try:
                before = await many(1000)
                after = await many(8000)
            finally:
                tracemalloc.stop()
            server_side = 8000 * 200  # the server, in this process too, records every request
            assert after - before < server_side
            quic: Any = client.quic.connection.engine
            backend: Any = client.connection._backend
            with anyio.fail_after(30):
                while len(quic._streams) > 8:
                    await anyio.sleep(0.01)
                    await client.get("/hello")
            assert len(quic._streams_queue) <= 8
            assert not backend._exchanges
            assert not backend._unread
            assert not backend._body_room.blocked
            end = await client.aclose()
            assert end.exchanges >= 10_000
            assert end.layers[1].outcome is Outcome.CLEAN
