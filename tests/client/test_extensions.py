"""Extensions of requests and responses as httpx2 documents them; the trace is what httpx2 itself emits."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from typing import Any

import httpx2
import pytest

import allswell
from allswell.testing import Origin
from tests.support.certificates import certificates
from tests.support.peer import PeerConnection, scripted_peer
from tests.support.quic_server import QuicServer
from tests.support.scripts import Ending, answers, end, huge, response
from tests.support.servers import ServerInfo

pytestmark = pytest.mark.anyio

Run = Callable[[httpx2.AsyncClient, dict[str, Any]], Awaitable[None]]


async def _traced(transport: httpx2.AsyncBaseTransport, run: Run) -> list[tuple[str, dict[str, Any]]]:
    told: list[tuple[str, dict[str, Any]]] = []

    async def trace(name: str, info: dict[str, Any]) -> None:
        told.append((name, info))

    async with httpx2.AsyncClient(transport=transport, timeout=60) as client:
        await run(client, {"trace": trace})
    return told


async def _compare(url: str, run: Run, **settings: Any) -> list[tuple[str, dict[str, Any]]]:
    """What our transport tells about it, which must be what httpx2's tells, event for event."""
    context = certificates().client_context()
    theirs = await _traced(httpx2.AsyncHTTPTransport(verify=context, **settings), run)
    ours = await _traced(allswell.AsyncTransport(verify=context, **{"http2": False, **settings}), run)
    # (Closing of connections is not part of a request here: it happens in the background.)
    assert [name for name, _ in ours] == [name for name, _ in theirs if not name.startswith("connection.close")]
    for (name, info), (_, expected) in zip(ours, theirs, strict=False):
        if name.endswith(".started"):
            assert expected.keys() <= info.keys(), name
    return ours


async def test_trace_of_requests() -> None:
    async def run(client: httpx2.AsyncClient, extensions: dict[str, Any]) -> None:
        await client.get(peer.url, extensions=extensions)
        await client.post(peer.url, content=b"again, on the same connection", extensions=extensions)

    with scripted_peer(answers(), tls=True) as peer:
        told = dict(await _compare(peer.url, run))
        assert told["connection.connect_tcp.started"]["host"] == "localhost"
        assert told["connection.connect_tcp.started"]["port"] == peer.port
        assert told["connection.connect_tcp.started"]["timeout"] == 60
        assert told["connection.start_tls.started"]["server_hostname"] == "localhost"
        version, status, reason, _ = told["http11.receive_response_headers.complete"]["return_value"]
        assert (version, status, reason) == (b"HTTP/1.1", 200, b"OK")


async def test_trace_of_a_body_in_many_pieces() -> None:
    async def run(client: httpx2.AsyncClient, extensions: dict[str, Any]) -> None:
        assert len((await client.get(peer.url, extensions=extensions)).content) == 2_000_000

    with scripted_peer(answers(body=lambda _: b"x" * 2_000_000)) as peer:
        await _compare(peer.url, run)


async def test_trace_of_http2(origin: ServerInfo) -> None:
    async def run(client: httpx2.AsyncClient, extensions: dict[str, Any]) -> None:
        assert (await client.get(f"{origin.url}/lines/3", extensions=extensions)).http_version == "HTTP/2"

    told = await _traced(allswell.AsyncTransport(verify=certificates().client_context()), run)
    steps = ["send_request_headers", "send_request_body", "receive_response_headers", "receive_response_body"]
    expected = [f"http2.{step}.{when}" for step in [*steps, "response_closed"] for when in ("started", "complete")]
    assert [name for name, _ in told if name.startswith("http2.")] == expected


async def test_trace_of_a_refused_connection() -> None:
    async def run(client: httpx2.AsyncClient, extensions: dict[str, Any]) -> None:
        with pytest.raises(httpx2.ConnectError):
            await client.get(url, extensions=extensions)

    with scripted_peer(answers()) as peer:
        url = peer.url  # nobody listens there any more in a moment
    told = await _compare(url, run)
    assert isinstance(told[-1][1]["exception"], Exception)


async def test_trace_of_a_failed_response() -> None:
    def script(connection: PeerConnection) -> None:
        connection.read_request()
        end(connection, Ending.FIN)

    async def run(client: httpx2.AsyncClient, extensions: dict[str, Any]) -> None:
        with pytest.raises(httpx2.RemoteProtocolError):
            await client.get(peer.url, extensions=extensions)

    with scripted_peer(script) as peer:
        await _compare(peer.url, run)


async def test_trace_of_a_body_that_is_cut() -> None:
    def script(connection: PeerConnection) -> None:
        connection.read_request()
        connection.send(response(b"x" * 100)[:-50])
        end(connection, Ending.FIN)

    async def run(client: httpx2.AsyncClient, extensions: dict[str, Any]) -> None:
        with pytest.raises(httpx2.RemoteProtocolError):
            await client.get(peer.url, extensions=extensions)

    with scripted_peer(script) as peer:
        await _compare(peer.url, run)


async def test_sni_hostname_is_sent_and_checked(trusting: ssl.SSLContext) -> None:
    names: list[str | None] = []
    context = certificates().server_context()
    context.sni_callback = lambda _, name, __: names.append(name)
    with scripted_peer(answers(), tls=context) as peer:
        async with allswell.AsyncClient(verify=trusting) as client:
            url = f"https://127.0.0.1:{peer.port}"
            await client.get(url, extensions={"sni_hostname": "localhost"})
            await client.get(url, extensions={"sni_hostname": "localhost"})
            with pytest.raises(httpx2.ConnectError, match="certificate"):
                await client.get(url, extensions={"sni_hostname": "other.example"})
    assert names == ["localhost", "other.example"]


async def test_network_stream_tells_about_the_connection() -> None:
    async with Origin(versions=["h1"]) as origin, allswell.AsyncClient(verify=origin.client_context()) as client:
        answer = await client.get(origin.url)
        stream = answer.extensions["network_stream"]
        assert stream.get_extra_info("ssl_object").version() == "TLSv1.3"
        assert stream.get_extra_info("server_addr")[:2] == ("127.0.0.1", origin.port)
        assert stream.get_extra_info("client_addr")[1] == stream.get_extra_info("socket").getsockname()[1]
        assert stream.get_extra_info("unheard of") is None
        assert answer.extensions["http_version"] == b"HTTP/1.1"
        assert answer.extensions["reason_phrase"] == b"OK"
        assert answer.extensions["attempts"] == []
    async with Origin(tls=False) as origin, allswell.AsyncClient() as client:
        stream = (await client.get(origin.url)).extensions["network_stream"]
        assert stream.get_extra_info("ssl_object") is None
        assert stream.get_extra_info("server_addr") == ("127.0.0.1", origin.port)


async def test_methods_of_a_network_stream_can_be_patched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of httpx2's can."""
    async with Origin(tls=False) as origin, allswell.AsyncClient() as client:
        stream = (await client.get(origin.url)).extensions["network_stream"]
        monkeypatch.setattr(stream, "get_extra_info", lambda info: f"patched {info}")
        assert stream.get_extra_info("socket") == "patched socket"


async def test_target_replaces_the_path() -> None:
    def script(connection: PeerConnection) -> None:
        while request := connection.read_request():
            connection.send(response(request.split(b"\r\n")[0]))

    with scripted_peer(script) as peer:
        async with allswell.AsyncClient() as client:
            answer = await client.options(peer.url, extensions={"target": b"*"})
            assert answer.text == "OPTIONS * HTTP/1.1"
            answer = await client.get(peer.url, extensions={"target": b"http://other.example/"})
            assert answer.text == "GET http://other.example/ HTTP/1.1"


async def test_target_is_bytes_or_text(trusting: ssl.SSLContext, origin: ServerInfo) -> None:
    for http2 in (False, True):
        async with allswell.AsyncClient(verify=trusting, http2=http2) as client:
            for target in (b"/anything?a", "/anything?a"):
                answer = await client.get(origin.url, extensions={"target": target})
                assert answer.json()["query"] == "a"


@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/2", "HTTP/3"])
async def test_what_opentelemetry_asks_for(version: str, origin: ServerInfo) -> None:
    """docs/how-to/tracing.md names these as the sources of its attributes."""
    with QuicServer() as quic:
        http3 = version == "HTTP/3"
        url = f"https://localhost:{quic.port}/hello" if http3 else f"{origin.url}/"
        port = httpx2.URL(url).port
        async with allswell.AsyncClient(
            verify=certificates().client_context(),
            http2=version == "HTTP/2",
            http3="only" if http3 else False,
        ) as client:
            assert client.pool is not None
            async with client.stream("GET", url) as response:
                stream = response.extensions["network_stream"]
                assert response.http_version == version
                assert stream.get_extra_info("server_addr")[:2] in [("127.0.0.1", port), ("::1", port)]
                if not http3:
                    assert stream.get_extra_info("ssl_object").version() == "TLSv1.3"
                assert response.extensions["attempts"] == []
                await response.aread()
            [connection] = client.pool.snapshot().routes[0].connections
            assert (connection.http_version, connection.exchanges, connection.idle is None) == (version, 0, False)


async def test_attempts_are_told() -> None:
    """The second request meets a connection that its server ends instead of answering, and goes again."""
    with scripted_peer(answers(1, instead=True)) as peer:
        async with allswell.AsyncClient() as client:
            assert (await client.get(peer.url)).extensions["attempts"] == []
            answer = await client.get(peer.url)
            assert len(answer.extensions["attempts"]) == 1
            assert "ended the connection" in answer.extensions["attempts"][0].why


async def test_a_generator_that_was_begun_is_not_sent_again() -> None:
    """The caller sees what happened, not that a generator runs only once."""

    async def pieces() -> Any:
        yield b"once"

    with scripted_peer(answers(1, instead=True)) as peer:
        async with allswell.AsyncClient() as client:
            await client.get(peer.url)
            with pytest.raises(httpx2.RemoteProtocolError):
                await client.put(peer.url, content=pieces())
            assert (await client.get(peer.url)).status_code == 200


@pytest.mark.parametrize("where", ["client", "request"])
async def test_total_timeout(where: str) -> None:
    """Though something comes all the time."""

    def script(connection: PeerConnection) -> None:
        connection.read_request()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while True:
            connection.pause(0.01)
            connection.send(b"x")

    with scripted_peer(script) as peer:
        total = 0.2 if where == "client" else None
        extensions = {"total_timeout": 0.2} if where == "request" else {}
        async with allswell.AsyncClient(total_timeout=total) as client:
            with pytest.raises(httpx2.TimeoutException, match=r"0\.2 s") as caught:
                await client.get(peer.url, extensions=extensions)
        assert isinstance(caught.value.__cause__, allswell.Timeout)
        assert caught.value.__cause__.phase == "total"


async def test_timeouts_have_httpx2s_names() -> None:
    def script(connection: PeerConnection) -> None:
        connection.stall()

    with scripted_peer(script, receive_buffer=4096) as peer:
        limits = httpx2.Limits(max_connections=1)
        async with allswell.AsyncClient(limits=limits, timeout=httpx2.Timeout(60, read=0.05)) as client:
            with pytest.raises(httpx2.ReadTimeout):
                await client.get(peer.url)
        async with allswell.AsyncClient(limits=limits, timeout=httpx2.Timeout(60, write=0.05)) as client:
            with pytest.raises(httpx2.WriteTimeout):
                await client.post(peer.url, content=b"x" * 20_000_000)
    with scripted_peer(lambda connection: connection.stall(), tls=True, handshake=False) as peer:
        async with allswell.AsyncClient(timeout=httpx2.Timeout(60, connect=0.05)) as client:
            with pytest.raises(httpx2.ConnectTimeout):
                await client.get(peer.url)


async def test_pool_timeout() -> None:
    def script(connection: PeerConnection) -> None:
        connection.read_request()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
        connection.stall()

    with scripted_peer(script) as peer:
        timeout = httpx2.Timeout(60, pool=0.05)
        async with (
            allswell.AsyncClient(limits=httpx2.Limits(max_connections=1), timeout=timeout) as client,
            client.stream("GET", peer.url),
        ):
            with pytest.raises(httpx2.PoolTimeout):
                await client.get(peer.url)


@pytest.mark.parametrize("step", ["send_request_headers.started", "receive_response_headers.complete"])
async def test_a_trace_that_fails_costs_no_connection(step: str) -> None:
    async def trace(name: str, info: dict[str, Any]) -> None:
        if name == f"http11.{step}":
            raise ValueError(name)

    with scripted_peer(huge(5_000_000)) as peer:
        limits = httpx2.Limits(max_connections=1)
        async with allswell.AsyncClient(limits=limits) as client:
            with pytest.raises(ValueError, match=step):
                await client.get(peer.url, extensions={"trace": trace})
            assert len((await client.get(peer.url)).content) == 5_000_000
