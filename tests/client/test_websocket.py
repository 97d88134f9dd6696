"""WebSockets over HTTP/1.1, HTTP/2 and HTTP/3: which version a session takes, and how it ends.

What they carry is tested with real servers (tests/servers/test_websocket.py).
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from itertools import count
from typing import Any

import anyio
import httpx2
import pytest
from httpx2.websockets import WebSocketDisconnect, WebSocketNetworkError, WebSocketUpgradeError
from hyperframe.frame import DataFrame, GoAwayFrame, RstStreamFrame

import allswell
from tests.support.certificates import certificates
from tests.support.h2_script import (
    CANCEL,
    ENABLE_CONNECT_PROTOCOL,
    INTERNAL_ERROR,
    MAX_CONCURRENT_STREAMS,
    Http2Server,
    Request,
    Talk,
)
from tests.support.lag import websocket_servers_end_within
from tests.support.peer import PeerConnection, ScriptedPeer, scripted_peer
from tests.support.proxies import connect_proxy
from tests.support.quic_server import QuicServer, ServedConnection
from tests.support.scripts import response
from tests.support.websocket import Echo, converse, upgrades

pytestmark = pytest.mark.anyio

Fields = dict[bytes, bytes]
Handler = Callable[[Talk, Request], object]
_OFFERS = {ENABLE_CONNECT_PROTOCOL: 1}
_BOTH = ("h2", "http/1.1")


class Server:
    """Speaks HTTP/2, or HTTP/1.1 where a client offers nothing else.

    :ivar connects: paths of the extended CONNECTs.
    :ivar h2: what HTTP/2's connections said.
    """

    def __init__(
        self,
        websocket: Handler = converse,
        *,
        settings: Any = _OFFERS,
        http1: Callable[[PeerConnection], None] = upgrades,
    ) -> None:
        self.connects: list[str] = []
        self._websocket = websocket
        self._http1 = http1
        self.h2 = Http2Server(self._serve, settings=settings)

    def _serve(self, talk: Talk, request: Request) -> None:
        if request.headers[":method"] == "CONNECT":
            self.connects.append(request.path)
            self._websocket(talk, request)
        else:
            talk.answer(request)

    def __call__(self, connection: PeerConnection) -> None:
        (self.h2 if connection.selected_alpn == "h2" else self._http1)(connection)

    @staticmethod
    def tls(*alpn: str) -> ssl.SSLContext:
        return certificates().server_context(alpn=alpn or _BOTH)


def _versions(peer: ScriptedPeer) -> list[str | None]:
    """What ALPN chose on each connection."""
    return [each.selected_alpn for each in peer.connections]


async def _talk(client: allswell.AsyncClient, url: str) -> str:
    """A session with one message; the version that carried it."""
    with anyio.fail_after(60):
        async with client.websocket(url.replace("https", "wss")) as talk:
            assert talk.response is not None
            assert talk.response.status_code == 101
            await talk.send_text("hello")
            assert await talk.receive_text() == "hello"
            version: str = talk.response.http_version
    return version


# Which version


async def test_the_first_goes_by_http1_for_nothing_is_known_yet(trusting: ssl.SSLContext) -> None:
    server = Server()
    with scripted_peer(server, tls=Server.tls()) as peer:
        async with allswell.AsyncClient(verify=trusting) as client:
            assert await _talk(client, peer.url) == "HTTP/1.1"
        assert _versions(peer) == ["http/1.1"]


async def test_it_goes_on_an_open_connection_that_offers_it(trusting: ssl.SSLContext) -> None:
    """Two sessions and a request at once share it, and the stream ids tell."""
    server = Server()
    with scripted_peer(server, tls=Server.tls()) as peer:
        async with allswell.AsyncClient(verify=trusting) as client:
            await client.get(peer.url)
            assert await _talk(client, f"{peer.url}/a") == "HTTP/2"
            assert await _talk(client, f"{peer.url}/b") == "HTTP/2"
        assert _versions(peer) == ["h2"]
    assert server.connects == ["/a", "/b"]


async def test_it_goes_by_http1_where_the_open_connection_does_not_offer_it(trusting: ssl.SSLContext) -> None:
    server = Server(settings={})
    with scripted_peer(server, tls=Server.tls()) as peer:
        async with allswell.AsyncClient(verify=trusting) as client:
            await client.get(peer.url)
            assert await _talk(client, peer.url) == "HTTP/1.1"
            assert (await client.get(peer.url)).http_version == "HTTP/2"
        assert _versions(peer) == ["h2", "http/1.1"]
    assert server.connects == []


async def test_what_worked_is_dialled_again(trusting: ssl.SSLContext) -> None:
    """The connection has ended, and the next session has one of HTTP/2 all the same."""
    server = Server()
    with scripted_peer(server, tls=Server.tls()) as peer:
        async with allswell.AsyncClient(verify=trusting) as client:
            await client.get(peer.url)
            assert await _talk(client, peer.url) == "HTTP/2"
            await client.drain()
            assert await _talk(client, peer.url) == "HTTP/2"
        assert _versions(peer) == ["h2", "h2"]


async def test_a_server_that_offers_it_no_more(trusting: ssl.SSLContext) -> None:
    server = Server(settings=[_OFFERS, {}])
    with scripted_peer(server, tls=Server.tls()) as peer:
        async with allswell.AsyncClient(verify=trusting) as client:
            await client.get(peer.url)
            assert await _talk(client, peer.url) == "HTTP/2"
            await client.drain()
            assert await _talk(client, peer.url) == "HTTP/1.1"
        assert _versions(peer) == ["h2", "h2", "http/1.1"]


@pytest.mark.parametrize("how", [400, 404, 405, 426, 500, 501, 502, "reset"])
async def test_a_server_that_offers_it_and_refuses_it(trusting: ssl.SSLContext, how: int | str) -> None:
    """HTTP/1.1 carries the session, as before. The next one does not ask again."""

    def refuse(talk: Talk, request: Request) -> None:
        if isinstance(how, int):
            talk.answer(request, b"no", status=how)
        else:
            talk.rst(request.stream, INTERNAL_ERROR)

    server = Server(refuse)
    with scripted_peer(server, tls=Server.tls()) as peer:
        async with allswell.AsyncClient(verify=trusting) as client:
            await client.get(peer.url)
            async with client.websocket(peer.url.replace("https", "wss")) as talk:
                assert talk.response is not None
                [attempt] = talk.response.extensions["attempts"]
                assert (attempt.processed, attempt.http_version) == ("declined", "HTTP/2")
                assert attempt.why.endswith(f"{how} to an extended CONNECT" if isinstance(how, int) else "CONNECT")
            assert await _talk(client, peer.url) == "HTTP/1.1"
            assert (await client.get(peer.url)).http_version == "HTTP/2"
        assert _versions(peer) == ["h2", "http/1.1", "http/1.1"]
    assert server.connects == ["/"]


@pytest.mark.parametrize("status", [301, 401, 403, 410, 429, 503])
async def test_a_refusal_of_the_session_is_the_answer(trusting: ssl.SSLContext, status: int) -> None:
    server = Server(lambda talk, request: talk.answer(request, b"no", status=status))
    with scripted_peer(server, tls=Server.tls()) as peer:
        async with allswell.AsyncClient(verify=trusting) as client:
            await client.get(peer.url)
            with pytest.raises(WebSocketUpgradeError) as caught:
                await _talk(client, peer.url)
            assert caught.value.response.status_code == status
        assert _versions(peer) == ["h2"]


async def test_both_ways_are_refused(trusting: ssl.SSLContext) -> None:
    """A wrong path. HTTP/1.1 says so, and nothing is learnt from it."""

    def websocket(talk: Talk, request: Request) -> None:
        if request.path == "/right":
            converse(talk, request)
        else:
            talk.answer(request, b"no", status=404)

    def http1(connection: PeerConnection) -> None:
        connection.read_request()
        connection.send(response(b"nothing here", status="404 Not Found"))

    server = Server(websocket, http1=http1)
    with scripted_peer(server, tls=Server.tls()) as peer:
        async with allswell.AsyncClient(verify=trusting) as client:
            await client.get(peer.url)
            with pytest.raises(WebSocketUpgradeError) as caught:
                await _talk(client, f"{peer.url}/wrong")
            assert caught.value.response.http_version == "HTTP/1.1"
            assert await _talk(client, f"{peer.url}/right") == "HTTP/2"
        assert _versions(peer) == ["h2", "http/1.1"]


async def test_a_trace_that_fails_at_the_end_of_a_refusal_costs_no_connection(trusting: ssl.SSLContext) -> None:
    """The session has its connection by then, and nobody gets the session."""

    async def trace(name: str, info: dict[str, Any]) -> None:
        if name.endswith("response_closed.complete"):
            raise LookupError

    server = Server(lambda talk, request: talk.answer(request, b"nothing here", status=404))
    with scripted_peer(server, tls=Server.tls()) as peer:
        async with allswell.AsyncClient(verify=trusting) as client:
            await client.get(peer.url)
            with pytest.raises(LookupError):
                async with client.websocket(peer.url.replace("https", "wss"), extensions={"trace": trace}):
                    pytest.fail("the trace has failed")
            assert _versions(peer) == ["h2", "http/1.1"]
            assert client.pool is not None
            assert [each.http_version for route in client.pool.snapshot().routes for each in route.connections] == (
                ["HTTP/2"]
            )


async def test_a_refusal_stands_where_http1_cannot_be_had(trusting: ssl.SSLContext) -> None:
    dials = count()
    server = Server(lambda talk, request: talk.answer(request, b"nothing here", status=404))
    with scripted_peer(server, tls=Server.tls()) as peer:
        async with allswell.AsyncClient(verify=trusting, allow_address=lambda _: next(dials) == 0) as client:
            await client.get(peer.url)
            with pytest.raises(WebSocketUpgradeError) as caught:
                await _talk(client, peer.url)
            assert (caught.value.response.http_version, caught.value.response.status_code) == ("HTTP/2", 404)
    assert next(dials) == 2


@pytest.mark.parametrize("bound", ["connect", "pool"])
async def test_a_refusal_stands_where_http1_takes_too_long(trusting: ssl.SSLContext, bound: str) -> None:
    """The second connection's handshake never comes; or there is no room for it, because the refusal goes on and on."""

    def refuse(talk: Talk, request: Request) -> None:
        talk.send(talk.headers(request.stream, [(":status", "404")]))

    def serve(connection: PeerConnection) -> None:
        if len(peer.connections) == 1:
            connection.handshake()
            server(connection)
        else:
            connection.stall()

    server = Server(refuse)
    limits = httpx2.Limits(max_connections=1 if bound == "pool" else None)
    timeout = httpx2.Timeout(60, **{bound: 3})
    with scripted_peer(serve, tls=Server.tls(), handshake=False) as peer:
        async with allswell.AsyncClient(verify=trusting, limits=limits, timeout=timeout) as client:
            await client.get(peer.url)
            with pytest.raises(WebSocketUpgradeError) as caught:
                await _talk(client, peer.url)
            assert (caught.value.response.http_version, caught.value.response.status_code) == ("HTTP/2", 404)


async def test_without_http1_there_is_only_one_way(trusting: ssl.SSLContext) -> None:
    for settings, error in ((_OFFERS, WebSocketUpgradeError), ({}, httpx2.LocalProtocolError)):
        server = Server(lambda talk, request: talk.answer(request, b"", status=501), settings=settings)
        with scripted_peer(server, tls=Server.tls()) as peer:
            async with allswell.AsyncClient(verify=trusting, http1=False) as client:
                with pytest.raises(error):
                    await _talk(client, peer.url)
                assert (await client.get(peer.url)).http_version == "HTTP/2"
            assert _versions(peer) == ["h2"]


async def test_without_http2_it_goes_by_http1(trusting: ssl.SSLContext) -> None:
    with scripted_peer(Server(), tls=Server.tls()) as peer:
        async with allswell.AsyncClient(verify=trusting, http2=False) as client:
            assert await _talk(client, peer.url) == "HTTP/1.1"


async def test_it_goes_over_http3_where_that_is_open(trusting: ssl.SSLContext) -> None:
    frames: dict[int, Echo] = {}

    def websocket(connection: ServedConnection, stream: int, fields: Fields) -> None:
        assert (fields[b":method"], fields[b":protocol"]) == (b"CONNECT", b"websocket")
        frames[stream] = Echo()
        connection.head(stream, 200)

    class Echoing(QuicServer):
        def _on_http(self, connection: ServedConnection, event: Any) -> None:
            super()._on_http(connection, event)
            if event.stream_id in frames and (data := getattr(event, "data", b"")):
                connection.data(event.stream_id, frames[event.stream_id](data))
                if frames[event.stream_id].closed is not None:
                    connection.data(event.stream_id, b"", end=True)

    with Echoing({b"/chat": websocket}) as server:
        origin = f"https://localhost:{server.port}"
        settings: dict[str, Any] = {"http3": True, "http3_origins": [origin]}
        async with allswell.AsyncClient(verify=trusting, **settings) as client:
            assert (await client.get(f"{origin}/hello")).http_version == "HTTP/3"
            assert await _talk(client, f"{origin}/chat") == "HTTP/3"
            report = await client.aclose()
        assert report.clean, report
        server.settle()
        assert len(server.connections) == 1
        assert server.all("reset") == server.all("stop") == []
    assert [echo.closed for echo in frames.values()] == [1000]


async def test_through_a_proxy_it_goes_as_it_does_without(trusting: ssl.SSLContext) -> None:
    """``wss`` in the tunnel that is open; ``ws``, which is not forwarded, in a tunnel of its own."""
    server = Server()
    with (
        scripted_peer(server, tls=Server.tls()) as peer,
        scripted_peer(upgrades) as plain,
        scripted_peer(connect_proxy()) as proxy,
    ):
        async with allswell.AsyncClient(verify=trusting, proxy=proxy.url) as client:
            assert await _talk(client, peer.url) == "HTTP/1.1"
            await client.get(peer.url)
            assert await _talk(client, peer.url) == "HTTP/2"
            assert await _talk(client, plain.url.replace("http", "ws")) == "HTTP/1.1"
        assert _versions(peer) == ["http/1.1", "h2"]
        assert [each.requests[0].split()[0] for each in proxy.connections] == [b"CONNECT"] * 3


async def test_callers_of_the_pool_have_it_too(trusting: ssl.SSLContext) -> None:
    server = Server()
    with scripted_peer(server, tls=Server.tls()) as peer:
        async with allswell.ConnectionPool(ssl_context=trusting) as pool:
            await pool.request("GET", peer.url)
            headers = {"Connection": "upgrade", "Upgrade": "websocket", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}
            async with pool.stream("GET", peer.url, headers=headers) as opened:
                assert (opened.status, opened.http_version) == (101, b"HTTP/2")
                assert (b"Sec-WebSocket-Accept", b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=") in opened.headers
                await opened.network_stream.write(b"\x81\x83\0\0\0\0abc")
                assert await opened.network_stream.read(100, timeout=60) == b"\x81\x03abc"
                await opened.network_stream.write(b"\x88\x80\0\0\0\0")
                await opened.network_stream.aclose()


# How a session ends


def _ends(talk: Talk, stream: int) -> list[str]:
    """What the client said on a stream behind its head, and on the connection, that ends something."""
    ends = []
    for frame in talk.frames:
        if frame.stream_id == stream and "END_STREAM" in frame.flags:
            ends.append("END_STREAM")
        elif isinstance(frame, RstStreamFrame) and frame.stream_id == stream:
            ends.append(f"RST_STREAM {frame.error_code}")
        elif isinstance(frame, GoAwayFrame):
            ends.append("GOAWAY")
    return ends


async def test_a_session_ends_its_stream_and_nothing_else(trusting: ssl.SSLContext) -> None:
    """Close frames both ways, END_STREAM both ways, and the connection goes on (RFC 8441 §5)."""
    server = Server()
    with scripted_peer(server, tls=Server.tls()) as peer:
        async with allswell.AsyncClient(verify=trusting) as client:
            await client.get(peer.url)
            assert await _talk(client, peer.url) == "HTTP/2"
            assert (await client.get(peer.url)).http_version == "HTTP/2"
            assert _ends(server.h2.talks[0], 3) == ["END_STREAM"]
            report = await client.aclose()
        assert report.clean, report
        await peer.ended()
        assert _ends(server.h2.talks[0], 3) == ["END_STREAM", "GOAWAY"]
        assert peer.connections[0].saw == ["close_notify", "FIN"]


async def test_the_server_may_close_first(trusting: ssl.SSLContext) -> None:
    """It says Close, hears ours, and ends the stream; so do we. The connection goes on."""

    def script(talk: Talk, request: Request) -> None:
        talk.send(talk.headers(request.stream, [(":status", "200")]))
        talk.body(request, b"\x88\x05\x0f\xa0bye", end=False)  # 4000
        while not request.body and talk.read() is not None:
            pass
        talk.body(request, b"", end=True)
        talk.send(DataFrame(request.stream, b"", flags=["END_STREAM"]))
        talk.read_body(request)

    server = Server(script)
    with scripted_peer(server, tls=Server.tls()) as peer:
        async with allswell.AsyncClient(verify=trusting) as client:
            await client.get(peer.url)
            with anyio.fail_after(60):
                async with client.websocket(peer.url.replace("https", "wss")) as talk:
                    with pytest.raises(WebSocketDisconnect) as caught:
                        await talk.receive_text()
                    assert (caught.value.code, caught.value.reason) == (4000, "bye")
            assert (await client.get(peer.url)).http_version == "HTTP/2"
            report = await client.aclose()
        assert report.clean, report
        assert _ends(server.h2.talks[0], 3) == ["END_STREAM", "GOAWAY"]


async def test_the_client_may_close_right_behind_the_session(trusting: ssl.SSLContext) -> None:
    server = Server()
    with scripted_peer(server, tls=Server.tls()) as peer:
        async with allswell.AsyncClient(verify=trusting) as client:
            await client.get(peer.url)
            assert await _talk(client, peer.url) == "HTTP/2"
        assert client.close_report is not None
        assert client.close_report.clean, client.close_report
        await peer.ended()
        assert _ends(server.h2.talks[0], 3) == ["END_STREAM", "GOAWAY"]


async def test_a_server_that_leaves_the_stream_open(trusting: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """hypercorn 0.18 does. When its time is over, the stream is reset, and the connection goes on."""
    websocket_servers_end_within(monkeypatch)
    server = Server(lambda talk, request: converse(talk, request, ends=False))
    with scripted_peer(server, tls=Server.tls()) as peer:
        async with allswell.AsyncClient(verify=trusting) as client:
            await client.get(peer.url)
            assert await _talk(client, peer.url) == "HTTP/2"
            await anyio.to_thread.run_sync(server.h2.talks[0].wait_for, "RST_STREAM 3")
            assert (await client.get(peer.url)).http_version == "HTTP/2"
            report = await client.aclose()
        assert report.clean, report
        assert _versions(peer) == ["h2"]
        assert _ends(server.h2.talks[0], 3)[0] == f"RST_STREAM {CANCEL}"


async def test_a_close_that_waits_for_nothing_says_all_the_same(trusting: ssl.SSLContext) -> None:
    """The server has yet to end the stream. Ours ends, and the goodbyes follow; nothing is reset."""
    server = Server(lambda talk, request: converse(talk, request, ends=False))
    with scripted_peer(server, tls=Server.tls()) as peer:
        async with allswell.AsyncClient(verify=trusting) as client:
            await client.get(peer.url)
            assert await _talk(client, peer.url) == "HTTP/2"
            await client.aclose(timeout=0)
        await peer.ended()
        assert _ends(server.h2.talks[0], 3) == ["END_STREAM", "GOAWAY"]
        assert peer.connections[0].saw == ["close_notify", "FIN"]


async def test_a_server_that_ends_the_connection_in_place_of_the_stream(trusting: ssl.SSLContext) -> None:
    """Nothing was lost by it, for the session is over."""
    ends: list[allswell.ConnectionEnd] = []

    def script(talk: Talk, request: Request) -> None:
        echo = Echo()
        talk.send(talk.headers(request.stream, [(":status", "200")]))
        while echo.closed is None:
            done = len(request.body)
            if talk.read() is None:
                return
            if answer := echo(bytes(request.body[done:])):
                talk.body(request, answer, end=False)
        talk.end()

    server = Server(script)
    with scripted_peer(server, tls=Server.tls()) as peer:
        async with allswell.AsyncClient(verify=trusting, on_connection_end=ends.append) as client:
            await client.get(peer.url)
            assert await _talk(client, peer.url) == "HTTP/2"
            assert await anyio.to_thread.run_sync(peer.connections[0].ended.wait, 30)
            assert (await client.get(peer.url)).http_version == "HTTP/2"
        assert [(end.clean, end.cut) for end in ends] == [(True, 0)] * 2, ends


async def test_a_session_that_is_cancelled_says_close(trusting: ssl.SSLContext) -> None:
    closed: list[int | None] = []
    server = Server(lambda talk, request: closed.append(converse(talk, request).closed))
    with scripted_peer(server, tls=Server.tls()) as peer:
        async with allswell.AsyncClient(verify=trusting) as client:
            await client.get(peer.url)
            with anyio.CancelScope() as scope:
                async with client.websocket(peer.url.replace("https", "wss")) as talk:
                    await talk.send_text("hello")
                    await talk.receive_text()
                    scope.cancel()
                    await talk.receive_text()
            assert scope.cancelled_caught
            assert (await client.get(peer.url)).http_version == "HTTP/2"
            assert _ends(server.h2.talks[0], 3) == ["END_STREAM"]
    assert closed == [1000]


async def test_a_raw_stream_that_is_dropped_is_reset(trusting: ssl.SSLContext) -> None:
    """Nobody has closed it: RST_STREAM(CANCEL) is what RST is to TCP (RFC 8441 §5)."""
    server = Server()
    with scripted_peer(server, tls=Server.tls()) as peer:
        async with allswell.AsyncClient(verify=trusting, http1=False) as client:
            async with client.stream("CONNECT", peer.url, extensions={"protocol": "websocket"}) as raw:
                assert raw.status_code == 200
            assert (await client.get(peer.url)).http_version == "HTTP/2"
            assert _ends(server.h2.talks[0], 1) == [f"RST_STREAM {CANCEL}"]


async def test_a_raw_stream_that_is_closed_ends(trusting: ssl.SSLContext) -> None:
    """END_STREAM at once; what the server still sends is dropped, and has its credit; no reset."""

    def script(talk: Talk, request: Request) -> None:
        talk.send(talk.headers(request.stream, [(":status", "200")]))
        talk.read_body(request)
        talk.body(request, b"x" * 3_000_000)  # three times the window

    server = Server(script)
    with scripted_peer(server, tls=Server.tls()) as peer:
        async with allswell.AsyncClient(verify=trusting, http1=False) as client:
            with anyio.fail_after(60):
                target = {"target": b"o.example:443"}
                async with client.stream("CONNECT", peer.url, extensions=target) as raw:
                    await raw.extensions["network_stream"].aclose()
                assert (await client.get(peer.url)).http_version == "HTTP/2"
            assert client.pool is not None
            assert "0 exchanges" in str(client.pool.snapshot())
            report = await client.aclose()
        assert report.clean, report
        assert _ends(server.h2.talks[0], 1) == ["END_STREAM", "GOAWAY"]


async def test_a_raw_stream_whose_peer_never_ends_is_reset_after_the_grace(trusting: ssl.SSLContext) -> None:
    def script(talk: Talk, request: Request) -> None:
        talk.send(talk.headers(request.stream, [(":status", "200")]))

    server = Server(script)
    with scripted_peer(server, tls=Server.tls()) as peer:
        async with allswell.AsyncClient(verify=trusting, http1=False, grace=0.3) as client:
            async with client.stream("CONNECT", peer.url, extensions={"target": b"o.example:443"}) as raw:
                await raw.extensions["network_stream"].aclose()
            await anyio.to_thread.run_sync(server.h2.talks[0].wait_for, "RST_STREAM 1")
            assert (await client.get(peer.url)).http_version == "HTTP/2"
            assert _ends(server.h2.talks[0], 1) == ["END_STREAM", f"RST_STREAM {CANCEL}"]


async def test_a_session_outlives_the_servers_goaway(trusting: ssl.SSLContext) -> None:
    """It goes on until it ends; the next request has another connection."""
    server = Server()
    with scripted_peer(server, tls=Server.tls()) as peer:
        async with allswell.AsyncClient(verify=trusting) as client:
            await client.get(peer.url)
            async with client.websocket(peer.url.replace("https", "wss")) as talk:
                await talk.send_text("before")
                assert await talk.receive_text() == "before"
                server.h2.talks[0].goaway(3)
                assert (await client.get(peer.url)).http_version == "HTTP/2"
                await talk.send_text("after")
                assert await talk.receive_text() == "after"
            assert await anyio.to_thread.run_sync(peer.connections[0].ended.wait, 30)
            assert _ends(server.h2.talks[0], 3)[0] == "END_STREAM"
        assert _versions(peer) == ["h2", "h2"]
        assert peer.connections[0].saw == ["close_notify", "FIN"]


async def test_drain_waits_for_a_session(trusting: ssl.SSLContext) -> None:
    server = Server()
    with scripted_peer(server, tls=Server.tls()) as peer:
        async with allswell.AsyncClient(verify=trusting) as client:
            await client.get(peer.url)
            async with client.websocket(peer.url.replace("https", "wss")) as talk:
                assert (await client.drain(timeout=0.1)).connections == ()
                await talk.send_text("still here")
                assert await talk.receive_text() == "still here"
            report = await client.drain()
        assert [end.clean for end in report.connections] == [True], report


async def test_closing_the_client_cuts_a_session_within_the_grace(trusting: ssl.SSLContext) -> None:
    """Its stream is reset, so that the server does not take it for an end; then come the goodbyes."""
    server = Server()
    with scripted_peer(server, tls=Server.tls()) as peer:
        client = allswell.AsyncClient(verify=trusting)
        await client.get(peer.url)
        with anyio.fail_after(30):
            async with client.websocket(peer.url.replace("https", "wss")) as talk:
                report = await client.aclose(timeout=2)
                with pytest.raises(WebSocketNetworkError):
                    await talk.receive_text()
        assert not report.clean
        await peer.ended()
        assert _ends(server.h2.talks[0], 3) == [f"RST_STREAM {CANCEL}", "GOAWAY"]
        assert peer.connections[0].saw == ["close_notify", "FIN"]


async def test_sessions_count_as_streams(trusting: ssl.SSLContext) -> None:
    """The third one needs another connection, where a server allows two streams."""
    gates = anyio.Event()

    def script(talk: Talk, request: Request) -> None:
        talk.send(talk.headers(request.stream, [(":status", "200")]))

    server = Server(script, settings={**_OFFERS, MAX_CONCURRENT_STREAMS: 2})
    with scripted_peer(server, tls=Server.tls()) as peer:
        async with allswell.AsyncClient(verify=trusting) as client, anyio.create_task_group() as tasks:
            await client.get(peer.url)
            opened = []

            async def hold(*, task_status: anyio.abc.TaskStatus[None]) -> None:
                extensions = {"protocol": "websocket"}
                async with client.stream("CONNECT", peer.url, extensions=extensions) as raw:
                    opened.append(raw.http_version)
                    task_status.started()
                    await gates.wait()

            for _ in range(3):
                await tasks.start(hold)
            assert _versions(peer) == ["h2", "h2"]
            gates.set()
        assert opened == ["HTTP/2"] * 3
