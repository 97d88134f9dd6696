"""CONNECT and upgrades: the raw stream in the place of HTTP, its errors, and how it ends (RFC 9110 §7.8, §9.3.6)."""

from __future__ import annotations

import ssl
import threading

import anyio
import httpcore
import httpcore2
import httpx
import pytest

import allswell
import allswell.httpx
from allswell.testing import Origin
from tests.support.certificates import certificates
from tests.support.peer import PeerConnection, scripted_peer

pytestmark = pytest.mark.anyio

_SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: talk\r\n\r\n"
_UPGRADE = {"Connection": "upgrade", "Upgrade": "talk"}


def _talk(connection: PeerConnection) -> None:
    """Echo in capitals, until the client has ended."""
    connection.read_head()
    connection.send(_SWITCH + b"WELCOME")
    while data := connection.recv():
        connection.send(data.upper())


@pytest.mark.parametrize("tls", [False, True])
async def test_upgrade_hands_over_the_stream(trusting: ssl.SSLContext, tls: bool) -> None:
    with scripted_peer(_talk, tls=tls) as peer:
        async with (
            allswell.AsyncClient(verify=trusting) as client,
            client.stream("GET", peer.url, headers=_UPGRADE) as response,
        ):
            assert response.status_code == 101
            stream = response.extensions["network_stream"]
            assert isinstance(stream, httpcore2.AsyncNetworkStream)
            assert await stream.read(3) == b"WEL"
            assert await stream.read(100) == b"COME"
            await stream.write(b"x" * 300_000)
            heard = b""
            while len(heard) < 300_000:
                heard += await stream.read(65_536)
            assert heard == b"X" * 300_000
            with pytest.raises(httpcore2.ReadTimeout):
                await stream.read(1, timeout=0.01)
            await stream.aclose()
            with pytest.raises(httpcore2.WriteError):
                await stream.write(b"late")
            with pytest.raises(httpcore2.ReadError):
                await stream.read(1)
            await stream.aclose()
        await peer.ended()
        assert peer.connections[0].saw == (["close_notify", "FIN"] if tls else ["FIN"])


async def test_a_reader_learns_that_the_stream_was_closed() -> None:
    with scripted_peer(_talk) as peer:
        async with (
            allswell.AsyncClient() as client,
            client.stream("GET", peer.url, headers=_UPGRADE) as response,
        ):
            stream = response.extensions["network_stream"]
            assert await stream.read(100) == b"WELCOME"
            errors: list[Exception] = []

            async def read() -> None:
                try:
                    await stream.read(1)
                except httpcore2.ReadError as error:
                    errors.append(error)

            with anyio.fail_after(30):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(read)
                    await anyio.wait_all_tasks_blocked()
                    await stream.aclose()
            assert len(errors) == 1
        await peer.ended()
        assert peer.connections[0].saw == ["FIN"]


@pytest.mark.parametrize("last_words", [True, False])
async def test_the_peer_ends_the_stream_first(trusting: ssl.SSLContext, last_words: bool) -> None:
    """Its half is over; ours still speaks, and then ends politely, whether by aclose() or by leaving the response."""

    def script(connection: PeerConnection) -> None:
        connection.read_head()
        connection.send(_SWITCH + b"bye")
        connection.send_close_notify()
        connection.fin()

    with scripted_peer(script, tls=True) as peer:
        async with allswell.AsyncClient(verify=trusting) as client:
            async with client.stream("GET", peer.url, headers=_UPGRADE) as response:
                stream = response.extensions["network_stream"]
                assert await stream.read(100) == b"bye"
                assert await stream.read(100) == b""
                assert await stream.read(100) == b""
                if last_words:
                    await stream.write(b"so long")
                    await stream.aclose()
            await peer.ended()
        connection = peer.connections[0]
        assert connection.received >= (7 if last_words else 0)
        assert connection.saw == ["close_notify", "FIN"]


async def test_a_stream_that_is_cut_fails_as_httpcore2_says(trusting: ssl.SSLContext) -> None:
    def script(connection: PeerConnection) -> None:
        connection.read_head()
        connection.send(_SWITCH)
        connection.recv()
        connection.reset()

    with scripted_peer(script, tls=True) as peer:
        async with (
            allswell.AsyncClient(verify=trusting) as client,
            client.stream("GET", peer.url, headers=_UPGRADE) as response,
        ):
            stream = response.extensions["network_stream"]
            await stream.write(b"go")
            with pytest.raises(httpcore2.ReadError) as caught:
                await stream.read(1)
            assert isinstance(caught.value.__cause__, allswell.AllswellError)
            with pytest.raises(httpcore2.WriteError):
                await stream.write(b"again")


async def test_a_write_into_a_cut_stream_fails_though_nobody_reads() -> None:
    """So much has come that reading is suspended: it is not the reader that learns of the cut."""
    sent = threading.Event()

    def script(connection: PeerConnection) -> None:
        connection.read_head()
        connection.send(_SWITCH + bytes(400_000))
        sent.set()
        connection.recv()
        connection.reset()

    with scripted_peer(script) as peer:
        async with (
            allswell.AsyncClient() as client,
            client.stream("GET", peer.url, headers=_UPGRADE) as response,
        ):
            stream = response.extensions["network_stream"]
            await anyio.to_thread.run_sync(sent.wait)
            with anyio.fail_after(60), pytest.raises(httpcore2.WriteError):
                await stream.write(bytes(20_000_000))


async def test_closing_the_pool_ends_a_tunnel_within_the_grace() -> None:
    with scripted_peer(_talk) as peer:
        client = allswell.AsyncClient()
        async with client.stream("GET", peer.url, headers=_UPGRADE) as response:
            stream = response.extensions["network_stream"]
            await stream.read(100)
            with anyio.fail_after(30):
                report = await client.aclose(timeout=0.2)
            assert not report.clean
            with pytest.raises(httpcore2.ReadError):
                await stream.read(1)


async def test_reading_a_switched_response_as_a_body_gives_nothing() -> None:
    with scripted_peer(_talk) as peer:
        async with allswell.AsyncClient() as client:
            response = await client.get(peer.url, headers=_UPGRADE)
            assert (response.status_code, response.content) == (101, b"")


async def test_without_a_tunnel_the_stream_only_informs() -> None:
    async with Origin(tls=False) as origin, allswell.AsyncClient() as client:
        stream = (await client.get(origin.url)).extensions["network_stream"]
        with pytest.raises(httpcore2.LocalProtocolError):
            await stream.write(b"x")


def _proxy(connection: PeerConnection) -> None:
    """CONNECT, and then the origin itself, through TLS of its own within the tunnel."""
    head = connection.read_head()
    assert head.startswith(b"CONNECT origin.example:443 HTTP/1.1\r\n"), head
    connection.send(b"HTTP/1.1 200 Connection established\r\n\r\n")
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = certificates().server_context().wrap_bio(incoming, outgoing, server_side=True)

    def step(call: object) -> bytes:
        while True:
            try:
                result = call()  # type: ignore[operator]  # whatever ssl gives
            except ssl.SSLWantReadError:
                connection.send(outgoing.read())
                data = connection.recv()
                if not data:
                    return b""
                incoming.write(data)
            else:
                connection.send(outgoing.read())
                return bytes(result or b"")

    step(tls.do_handshake)
    assert step(lambda: tls.read(100)) == b"ping"
    tls.write(b"pong")
    connection.send(outgoing.read())
    assert step(lambda: tls.read(100)) == b""  # the inner close_notify
    try:
        tls.unwrap()
    except ssl.SSLError:
        pass  # the client's is read already
    connection.send(outgoing.read())


async def test_connect_and_tls_through_the_tunnel(trusting: ssl.SSLContext) -> None:
    with scripted_peer(_proxy) as peer:
        async with allswell.AsyncClient() as client:
            target = {"target": b"origin.example:443"}
            async with client.stream("CONNECT", peer.url, extensions=target) as response:
                assert response.status_code == 200
                raw = response.extensions["network_stream"]
                stream = await raw.start_tls(trusting, "localhost", timeout=60)
                assert stream.get_extra_info("ssl_object").version() == "TLSv1.3"
                assert stream.get_extra_info("server_addr") == (peer.host, peer.port)
                await stream.write(b"ping")
                assert await stream.read(100) == b"pong"
                with anyio.fail_after(30):
                    await stream.aclose()
        await peer.ended()
        assert peer.connections[0].saw == ["FIN"]


async def test_tls_that_fails_within_the_tunnel() -> None:
    def script(connection: PeerConnection) -> None:
        connection.read_head()
        connection.send(b"HTTP/1.1 200 OK\r\n\r\n")
        connection.recv()
        connection.send(b"this is no TLS")

    with scripted_peer(script) as peer:
        async with (
            allswell.AsyncClient() as client,
            client.stream("CONNECT", peer.url, extensions={"target": b"o.example:443"}) as response,
        ):
            with pytest.raises(httpcore2.ConnectError):
                await response.extensions["network_stream"].start_tls(ssl.create_default_context(), "o.example")


async def test_connect_refused_is_a_response() -> None:
    def script(connection: PeerConnection) -> None:
        connection.read_head()
        connection.send(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 2\r\n\r\nno")

    with scripted_peer(script) as peer:
        async with allswell.AsyncClient() as client:
            response = await client.request("CONNECT", peer.url, extensions={"target": b"o.example:443"})
            assert (response.status_code, response.content) == (407, b"no")


async def test_under_httpx_the_errors_are_httpcores() -> None:
    with scripted_peer(_talk) as peer:
        async with (
            httpx.AsyncClient(transport=allswell.httpx.AsyncTransport()) as client,
            client.stream("GET", peer.url, headers=_UPGRADE) as response,
        ):
            stream = response.extensions["network_stream"]
            assert await stream.read(100) == b"WELCOME"
            with pytest.raises(httpcore.ReadTimeout):
                await stream.read(1, timeout=0.01)
            await stream.aclose()


async def test_upgrade_on_the_pool_itself_is_never_http2(trusting: ssl.SSLContext) -> None:
    offered = certificates().server_context(alpn=("h2", "http/1.1"))
    with scripted_peer(_talk, tls=offered) as peer:
        async with allswell.ConnectionPool(ssl_context=trusting) as pool:
            headers = [(b"Connection", b"upgrade"), (b"Upgrade", b"talk")]
            async with pool.stream("GET", peer.url, headers=headers) as response:
                assert response.status == 101
                assert await response.network_stream.read(100) == b"WELCOME"
                await response.network_stream.aclose()
        assert peer.connections[0].selected_alpn == "http/1.1"


async def test_a_websocket_whose_server_vanishes() -> None:
    from httpx2.websockets import WebSocketNetworkError

    def script(connection: PeerConnection) -> None:
        head = connection.read_head()
        import base64
        import hashlib
        import re

        found = re.search(rb"(?i)sec-websocket-key: (\S+)", head)
        assert found is not None
        magic = found.group(1) + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        accept = base64.b64encode(hashlib.sha1(magic, usedforsecurity=False).digest())
        connection.send(_SWITCH.replace(b"talk", b"websocket")[:-2] + b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n")
        connection.recv()
        connection.reset()

    with scripted_peer(script) as peer:
        async with allswell.AsyncClient() as client:
            with anyio.fail_after(30):
                async with client.websocket(peer.url.replace("http", "ws")) as talk:
                    await talk.send_text("anybody?")
                    with pytest.raises(WebSocketNetworkError):
                        await talk.receive_text()
