"""How connections end through HTTP/3 proxies: first the origin hears it, then the proxy. And HTTP/3 in SOCKS."""

from __future__ import annotations

import threading
from time import monotonic
from typing import Any

import anyio
import pytest

from allswell import CloseReport, ConnectionEnd, ConnectionPool, ProxyHop, QuicConfig, TransportError
from tests.support.certificates import certificates
from tests.support.h3_proxy import Http3Proxy
from tests.support.lag import LAG, long_closing_period
from tests.support.peer import PeerConnection, scripted_peer
from tests.support.proxies import socks_relay
from tests.support.quic_server import QuicServer, ServedConnection
from tests.support.scripts import answers, never_ends

pytestmark = pytest.mark.anyio

CANCELLED = 0x10C  # H3_REQUEST_CANCELLED (RFC 9114 §8.1)


def pool_through(proxy: Http3Proxy, **settings: Any) -> ConnectionPool:
    settings.setdefault("grace", 3 * LAG)  # what answers is not waited for that long, on the slowest machine
    trust = certificates().client_context()
    hop = ProxyHop("https", "localhost", proxy.port, ssl_context=trust, http3="only")
    return ConnectionPool(ssl_context=certificates().client_context(), proxies=(hop,), **settings)


def by_route(report: CloseReport) -> tuple[list[ConnectionEnd], list[ConnectionEnd]]:
    """Those to origins, and those to proxies."""
    to_proxies = [end for end in report.connections if end.route.startswith("the proxy")]
    return [end for end in report.connections if end not in to_proxies], to_proxies


def said(end: ConnectionEnd) -> list[str]:
    return [layer.said.partition("(")[0] for layer in end.layers]


class Timeline:
    """What several servers saw, in the one order in which they did."""

    def __init__(self, **servers: QuicServer) -> None:
        self.words: list[str] = []
        for name, server in servers.items():
            server.seen = _Telling(name, self.words)


class _Telling(list[tuple[Any, ...]]):
    def __init__(self, name: str, words: list[str]) -> None:
        super().__init__()
        self._name = name
        self._words = words

    def append(self, entry: tuple[Any, ...]) -> None:
        super().append(entry)
        self._words.append(f"{self._name} {entry[0]}")


@pytest.mark.parametrize("datagrams", [True, False])
async def test_http3_ends_inside_before_it_ends_outside(datagrams: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    long_closing_period(monkeypatch)
    with Http3Proxy(datagrams=datagrams, answer_close=True) as proxy, QuicServer(answer_close=True) as origin:
        seen = Timeline(origin=origin, proxy=proxy)
        pool = pool_through(proxy, http3="only")
        response = await pool.request("GET", f"https://127.0.0.1:{origin.port}/hello")
        assert await response.read() == b"hello"
        report = await pool.aclose()
        assert seen.words[-5:] == ["origin goaway", "origin close", "proxy end", "proxy goaway", "proxy close"]
        [to_origin], [to_proxy] = by_route(report)
        assert said(to_origin) == ["GOAWAY", "CONNECTION_CLOSE", "", "FIN"]
        assert said(to_proxy) == ["GOAWAY", "CONNECTION_CLOSE", ""]
        assert report.clean
        assert report.seconds < LAG


async def test_tls_ends_inside_before_the_tunnel(monkeypatch: pytest.MonkeyPatch) -> None:
    long_closing_period(monkeypatch)
    with scripted_peer(answers(), tls=True) as origin, Http3Proxy(answer_close=True) as proxy:
        pool = pool_through(proxy)
        await pool.request("GET", origin.url)
        report = await pool.aclose()
        await origin.ended()
        assert origin.connections[0].saw == ["close_notify", "FIN"]
        assert [word for word, *_ in proxy.seen][-3:] == ["end", "goaway", "close"]
        assert proxy.all("reset") == []
        [to_origin], [to_proxy] = by_route(report)
        assert [(layer.layer, layer.said, layer.heard) for layer in to_origin.layers] == [
            ("h1", "", ""),
            ("tls", "close_notify", "close_notify"),
            ("tunnel", "FIN", "FIN"),
        ]
        assert said(to_proxy) == ["GOAWAY", "CONNECTION_CLOSE", ""]
        assert report.clean


@pytest.mark.parametrize("grace", [0.0, 0.6])
@pytest.mark.parametrize("inner", ["h1", "h3"])
@pytest.mark.parametrize("silent", ["origin", "proxy"])
async def test_the_silent_cost_at_most_the_grace(silent: str, inner: str, grace: float) -> None:
    """And all is said even to them."""
    with (
        Http3Proxy() as proxy,
        QuicServer() as quic_origin,
        scripted_peer(never_ends() if silent == "origin" else answers(), tls=True) as tcp_origin,
    ):
        pool = pool_through(proxy, http3="only" if inner == "h3" else False)
        await pool.request("GET", tcp_origin.url if inner == "h1" else f"https://127.0.0.1:{quic_origin.port}/hello")

        def fall_silent(connection: ServedConnection) -> None:
            connection.silent = True

        if silent == "proxy":
            proxy.call(fall_silent)
        elif inner == "h3":
            quic_origin.call(fall_silent)
        began = monotonic()
        report = await pool.aclose(grace)
        assert monotonic() - began < grace + LAG
        [to_origin], [to_proxy] = by_route(report)
        above = ["", "close_notify"] if inner == "h1" else ["GOAWAY", "CONNECTION_CLOSE", ""]
        assert said(to_origin) == [*above, "FIN"]
        assert said(to_proxy) == ["GOAWAY", "CONNECTION_CLOSE", ""]
        await saw(proxy, "end")
        await saw(proxy, "close")
        assert proxy.all("close") == [(0x1D, 0x100)]
        if inner == "h3":
            await saw(quic_origin, "close")
            assert quic_origin.all("close") == [(0x1D, 0x100)]
        else:
            tcp_origin.release()
            await tcp_origin.ended()
            assert tcp_origin.connections[0].saw[0] == "close_notify"


async def saw(server: QuicServer, word: str) -> None:
    with anyio.fail_after(30):
        while not server.all(word):  # noqa: ASYNC110  the server lives in another thread
            await anyio.sleep(0.005)


def half(connection: PeerConnection) -> None:
    """An origin that never gets further than half of a response."""
    connection.read_request()
    connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nten bytes.")


async def test_an_aborted_tunnel_is_reset_and_the_connection_lives() -> None:
    with (
        scripted_peer(half, tls=True) as halfway,
        scripted_peer(answers(), tls=True) as whole,
        Http3Proxy(answer_close=True) as proxy,
    ):
        pool = pool_through(proxy)
        await pool.request("GET", whole.url)
        async with pool.stream("GET", halfway.url) as response:
            assert await response.receive() == b"ten bytes."
        await saw(proxy, "reset")
        assert proxy.all("reset") == [(4, CANCELLED)]
        assert await (await pool.request("GET", f"{whole.url}/still")).read() == b"/still"
        report = await pool.aclose()
        await whole.ended()
        await halfway.ended()
        assert len(whole.connections) == len(proxy.connections) == 1
        assert proxy.all("end") == [(0,)]
        assert whole.connections[0].saw == ["close_notify", "FIN"]
        assert "close_notify" not in halfway.connections[0].saw
        assert report.clean


async def test_an_abandoned_exchange_inside_http3_resets_its_own_stream_only() -> None:
    def begin(connection: ServedConnection, stream: int, fields: dict[bytes, bytes]) -> None:
        connection.head(stream, 200)
        connection.data(stream, b"half")

    with Http3Proxy(answer_close=True) as proxy, QuicServer({b"/half": begin}, answer_close=True) as origin:
        pool = pool_through(proxy, http3="only")
        url = f"https://127.0.0.1:{origin.port}"
        async with pool.stream("GET", f"{url}/half") as response:
            assert await response.receive() == b"half"
        assert await (await pool.request("GET", f"{url}/hello")).read() == b"hello"
        assert (await pool.aclose()).clean
        assert ("stop", 0, CANCELLED) in origin.seen
        assert proxy.all("reset") == proxy.all("stop") == []
        assert len(origin.connections) == len(proxy.connections) == 1


@pytest.mark.parametrize("inner", ["h1", "h3"])
async def test_a_proxy_that_dies_takes_its_tunnels_along(inner: str) -> None:
    ends: list[ConnectionEnd] = []

    def begin(connection: ServedConnection, stream: int, fields: dict[bytes, bytes]) -> None:
        connection.head(stream, 200)
        connection.data(stream, b"ten bytes.")

    with (
        scripted_peer(half, tls=True) as tcp_origin,
        QuicServer({b"/half": begin}) as quic_origin,
        Http3Proxy() as proxy,
    ):
        pool = pool_through(proxy, http3="only" if inner == "h3" else False, on_connection_end=ends.append)
        url = tcp_origin.url if inner == "h1" else f"https://127.0.0.1:{quic_origin.port}/half"
        async with pool.stream("GET", url) as response:
            assert await response.receive() == b"ten bytes."
            proxy.call(lambda connection: connection.quic.close(error_code=0x102, reason_phrase="oh no"))
            with pytest.raises(TransportError, match="oh no"):
                await response.receive()
        with anyio.fail_after(30):
            while len(ends) < 2:  # noqa: ASYNC110
                await anyio.sleep(0.01)
        assert [end.clean for end in ends] == [False, False]
        # The next one has a connection of its own.
        async with pool.stream("GET", url) as response:
            assert await response.receive() == b"ten bytes."
        assert len(proxy.connections) == 2
        await pool.aclose()
        tcp_origin.release()


async def test_idle_tunnels_end_and_then_their_connection() -> None:
    ends: list[ConnectionEnd] = []
    with scripted_peer(answers(), tls=True) as origin, Http3Proxy(answer_close=True) as proxy:
        async with pool_through(proxy, keepalive_expiry=0.1, on_connection_end=ends.append) as pool:
            await pool.request("GET", origin.url)
            await origin.ended()
            await saw(proxy, "close")
            with anyio.fail_after(30):
                while len(ends) < 2:  # noqa: ASYNC110
                    await anyio.sleep(0.01)
        assert [end.reason for end in ends] == ["idle for 0.1 s"] * 2
        assert all(end.clean for end in ends)


async def test_an_idle_tunnel_outlives_quics_idle_timeout() -> None:
    """A PING in time keeps the connection that carries it."""
    with scripted_peer(answers(delay=6), tls=True) as origin, Http3Proxy(idle_timeout=5.0) as proxy:
        async with pool_through(proxy, quic=QuicConfig(idle_timeout=5.0)) as pool:
            assert await (await pool.request("GET", f"{origin.url}/late")).read() == b"/late"
        assert len(proxy.connections) == 1


async def test_a_cancelled_handshake_inside_leaves_nothing() -> None:
    def silent(connection: PeerConnection) -> None:
        connection.read_until_end()

    with scripted_peer(silent, tls=True, handshake=False) as origin, Http3Proxy() as proxy:
        async with pool_through(proxy) as pool, anyio.create_task_group() as tasks:
            tasks.start_soon(pool.request, "GET", origin.url)
            await anyio.to_thread.run_sync(origin.wait_accepted)
            tasks.cancel_scope.cancel()
        await origin.ended()
        assert "close_notify" not in origin.connections[0].saw


async def test_an_idle_connection_ends_with_its_socks_relay() -> None:
    """Nobody asks, nothing is sent: the end of the connection that the relay was asked for on is noticed."""
    ends: list[ConnectionEnd] = []
    over = threading.Event()
    with scripted_peer(socks_relay(over)) as proxy, QuicServer() as origin:
        hop = ProxyHop("socks5", proxy.host, proxy.port)
        trust = certificates().client_context()
        settings: dict[str, Any] = {"http3": "only", "keepalive_expiry": None, "on_connection_end": ends.append}
        async with ConnectionPool(ssl_context=trust, proxies=(hop,), **settings) as pool:
            response = await pool.request("GET", f"https://127.0.0.1:{origin.port}/hello")
            assert await response.read() == b"hello"
            assert ends == []
            over.set()
            with anyio.fail_after(30):
                while not ends:  # noqa: ASYNC110  what is waited for happens in threads
                    await anyio.sleep(0.01)
            assert ends[0].reason == f"the proxy {hop} ended the relay"
            assert pool.snapshot().routes == ()
        assert origin.all("close") == []
        await proxy.ended()
