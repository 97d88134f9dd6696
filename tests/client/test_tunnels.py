"""CONNECT and upgrades: the raw stream in the place of HTTP, its errors, and how it ends (RFC 9110 §7.8, §9.3.6)."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import anyio
import httpcore
import httpcore2
import httpx
import httpx2
import pytest
from hyperframe.frame import DataFrame

import allswell
import allswell.httpx
from allswell.testing import Origin
from tests.support.certificates import certificates
from tests.support.h2_proxy import Http2Proxy
from tests.support.h2_script import CANCEL, ENABLE_CONNECT_PROTOCOL, Talk, h2_tls
from tests.support.h2_script import Request as H2Request
from tests.support.peer import PeerConnection, scripted_peer
from tests.support.quic_server import QuicServer, ServedConnection

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


#: More bytes than all buffers on the way hold.
_MUCH = {"h1": 8 * 1024 * 1024, "h2": 500_000, "h3": 500_000}


@contextmanager
def _ends_first(version: str, *, reads: bool) -> Iterator[tuple[str, dict[str, Any], Callable[[], int]]]:
    """A peer that ends its half of a tunnel at once: its URL, the client's settings, and how many bytes it has read.

    :param reads: whether it reads all; else it says, after a part, that it reads no more.
    """

    def h1(connection: PeerConnection) -> None:
        connection.read_head()
        connection.send(_SWITCH)
        connection.fin()
        while (reads or connection.received < 100_000) and connection.recv():
            pass
        if not reads:
            connection.reset()

    def h2(talk: Talk, request: H2Request) -> bool:
        talk.send(talk.headers(request.stream, [(":status", "200")]))
        talk.send(DataFrame(request.stream, b"", flags=["END_STREAM"]))
        if not reads:
            while len(request.body) < 50_000:
                talk.read()
            talk.rst(request.stream, CANCEL)
        return True

    def h3(connection: ServedConnection, stream: int, fields: dict[bytes, bytes]) -> None:
        connection.head(stream, 200)
        connection.data(stream, b"", end=True)
        if not reads:
            connection.quic.stop_stream(stream, 0x100)

    if version == "h1":
        with scripted_peer(h1, receive_buffer=16384) as peer:
            yield peer.url, {}, lambda: peer.connections[0].received
    elif version == "h2":
        script = Http2Proxy(h2, settings={ENABLE_CONNECT_PROTOCOL: 1}, credits_at_once=reads)
        with scripted_peer(script, tls=h2_tls()) as peer:
            yield peer.url, {}, lambda: len(script.talks[0].requests[1].body)
    else:
        with QuicServer({b"/": h3}, max_stream_data=100_000) as server:
            url = f"https://localhost:{server.port}"
            yield url, {"http3": "only"}, lambda: sum(size for _, size in server.all("body"))


@asynccontextmanager
async def _half_closed(version: str, client: allswell.AsyncClient, url: str) -> AsyncIterator[Any]:
    """The stream of a tunnel whose peer has ended its half."""
    how: Any = {"headers": _UPGRADE} if version == "h1" else {"extensions": {"protocol": "talk"}}
    async with client.stream("GET" if version == "h1" else "CONNECT", f"{url}/", **how) as response:
        stream = response.extensions["network_stream"]
        assert await stream.read(1) == b""
        yield stream


@pytest.mark.parametrize("timeout", [None, 60.0])
@pytest.mark.parametrize("version", ["h1", "h2", "h3"])
async def test_a_peer_that_has_ended_may_read_on(trusting: ssl.SSLContext, version: str, timeout: float | None) -> None:
    """RFC 9113 §5.1: it may still give credit. Yet what did not fit at once failed."""
    with anyio.fail_after(60), _ends_first(version, reads=True) as (url, settings, received):
        async with allswell.AsyncClient(verify=trusting, **settings) as client:
            async with _half_closed(version, client, url) as stream:
                await stream.write(bytes(_MUCH[version]), timeout=timeout)
                await stream.aclose()
            while received() < _MUCH[version]:  # noqa: ASYNC110  the peer reads them in its own thread
                await anyio.sleep(0.01)


@pytest.mark.parametrize("version", ["h1", "h2", "h3"])
async def test_a_peer_that_has_ended_may_stop_reading(trusting: ssl.SSLContext, version: str) -> None:
    """A write that waits for it learns of that at once."""
    with anyio.fail_after(30), _ends_first(version, reads=False) as (url, settings, _):
        async with (
            allswell.AsyncClient(verify=trusting, **settings) as client,
            _half_closed(version, client, url) as stream,
        ):
            with pytest.raises(httpcore2.WriteError):
                await stream.write(bytes(_MUCH[version]), timeout=60)


async def test_a_peer_that_has_ended_is_waited_for_as_long_as_the_caller_says() -> None:
    """Without a limit of the caller's, within the request's write timeout (see ``test_datagrams.py``)."""

    def read_nothing(connection: PeerConnection) -> None:
        connection.read_head()
        connection.send(_SWITCH)
        connection.fin()
        connection.stall()

    with anyio.fail_after(30), scripted_peer(read_nothing) as peer:
        async with (
            allswell.AsyncClient(timeout=httpx2.Timeout(60, write=0.2)) as client,
            _half_closed("h1", client, peer.url) as stream,
        ):
            with pytest.raises(httpcore2.WriteTimeout, match=r"within 0\.5 s"):
                await stream.write(bytes(_MUCH["h1"]), timeout=0.5)
            with pytest.raises(httpcore2.WriteError, match=r"has ended: its peer took nothing within 0\.2 s"):
                await stream.write(bytes(_MUCH["h1"]))
            peer.release()
